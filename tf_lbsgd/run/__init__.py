"""What a run is: its recipe, plan, options and folder. Needs no TensorFlow."""
