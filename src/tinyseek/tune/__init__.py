"""Making a trained model do as it is asked."""
