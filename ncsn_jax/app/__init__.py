"""The application: everything that reads a configuration or touches files, devices or the clock."""
