"""Training from photographs: the parts that all families of models share."""
