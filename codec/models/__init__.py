"""The interface of models, their files, and the registry that finds them."""
