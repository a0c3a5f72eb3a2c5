"""Students: the models that are trained, their vocabulary, initialization and adapters."""
