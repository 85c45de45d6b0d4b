"""What the forms for several platforms are made of. Nothing here depends on the platform."""
