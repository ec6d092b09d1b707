"""The networks, and nothing about training them."""
