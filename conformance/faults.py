"""The catalogue of seeded faults, to show that the suite catches them."""

from __future__ import annotations

from conformance.faults_archives import ARCHIVED, TRANSLATED
from conformance.faults_backward import BACKWARD
from conformance.faults_bridge import BRIDGE, CONFIGURATION
from conformance.faults_data import DATA
from conformance.faults_maps import OF_MAPS
from conformance.faults_network import FORWARD
from conformance.faults_objects import LIGHT, OBJECTS
from conformance.faults_optimiser import OPTIMISER
from conformance.faults_reading import OF_FILES
from conformance.faults_scores import SCORES
from conformance.seeding import Fault


def all_faults() -> tuple[Fault, ...]:
    """Return the whole catalogue."""
    return (
        *FORWARD,
        *BACKWARD,
        *CONFIGURATION,
        *TRANSLATED,
        *BRIDGE,
        *ARCHIVED,
        *OF_FILES,
        *DATA,
        *OF_MAPS,
        *LIGHT,
        *OBJECTS,
        *SCORES,
        *OPTIMISER,
    )
