"""How good a model is: bits per byte on text, exact match on tasks it was not trained on, and the page that shows both."""
