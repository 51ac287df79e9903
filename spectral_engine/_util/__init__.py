"""Small tools that several rooms share."""
