"""Every stage of every model, measured side by side."""
