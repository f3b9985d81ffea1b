"""A plugin that cannot be imported."""

import dengine_sm_toy_library_that_nobody_has  # noqa: F401 - on purpose
