"""Does the suite see mistakes? Some hundred that people make, and rewrites that change nothing, put into the product.

``python -m conformance.selftest`` (or ``make selftest``) runs them; it is no part of the wheel, and ``pytest
conformance`` collects nothing here. A mistake is one line in ``network`` or ``outside``, a rewrite one in ``rewrites``.
"""
