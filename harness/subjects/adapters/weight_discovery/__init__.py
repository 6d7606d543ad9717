"""Find the weight map of a model: by the names of its parameters, and by how its forward pass uses them."""
