"""What a run is made of: models and guides by name, data, options."""
