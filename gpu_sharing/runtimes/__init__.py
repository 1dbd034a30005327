"""A model as a sequence of segments, for each kind of artefact; and the checks before anything is deserialised."""
