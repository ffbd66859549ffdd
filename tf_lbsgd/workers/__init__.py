"""The processes of a run: how they meet, are watched, fail and end. Needs no TensorFlow."""
