"""All steps outside the network: configuration, bridge, data, single operations, optimiser."""

from __future__ import annotations

from conformance.step import Step
from conformance.steps_alignment import ALIGNMENT
from conformance.steps_archives import ARCHIVED
from conformance.steps_bridge import BRIDGE, CONFIGURATION
from conformance.steps_choices import CHOICES, CHOSEN
from conformance.steps_configurations import TRANSLATED
from conformance.steps_conversion import CONVERTED
from conformance.steps_converting import CONVERTING
from conformance.steps_data import DATA
from conformance.steps_derived import DERIVING
from conformance.steps_evaluating import EVALUATING
from conformance.steps_explaining import EXPLAINING
from conformance.steps_export import EXPORTED
from conformance.steps_forward import FORWARD
from conformance.steps_inferring import INFERRING, PREDICTING, WRITING
from conformance.steps_initial_weights import INITIAL_WEIGHTS
from conformance.steps_light import LIGHT, PROBES
from conformance.steps_loading import LOADING
from conformance.steps_maps import MAPPING
from conformance.steps_masked_loss import MASKED_LOSS
from conformance.steps_module import MODULE
from conformance.steps_objects import OBJECTS
from conformance.steps_precision import PRECISION
from conformance.steps_preparation import PREPARING
from conformance.steps_reading import READING
from conformance.steps_rebuilding import REBUILDING
from conformance.steps_resumed_runs import RESUMED_RUNS
from conformance.steps_resuming import RESUMING
from conformance.steps_runs import RUNS
from conformance.steps_samplers import SAMPLING
from conformance.steps_scores import SCORES
from conformance.steps_simulating import SIMULATING
from conformance.steps_stitching import STITCHING
from conformance.steps_target import TARGET
from conformance.steps_training import OPTIMISER


def all_steps() -> tuple[Step, ...]:
    """List every step in the order in which a run goes through them."""
    return (
        *PROBES,
        *CONFIGURATION,
        *CHOICES,
        *TRANSLATED,
        *BRIDGE,
        *ARCHIVED,
        *CONVERTED,
        *EXPORTED,
        *READING,
        *PREPARING,
        *CONVERTING,
        *DATA,
        *SAMPLING,
        *MAPPING,
        *REBUILDING,
        *DERIVING,
        *LOADING,
        *FORWARD,
        *STITCHING,
        *LIGHT,
        *TARGET,
        *SIMULATING,
        *OBJECTS,
        *WRITING,
        *ALIGNMENT,
        *SCORES,
        *EVALUATING,
        *EXPLAINING,
        *MASKED_LOSS,
        *PREDICTING,
        *OPTIMISER,
        *RESUMING,
        *CHOSEN,
        *INITIAL_WEIGHTS,
        *MODULE,
        *PRECISION,
        *RUNS,
        *RESUMED_RUNS,
        *INFERRING,
    )
