"""The records as the store keeps them, for the server alone."""
