"""What is done to a table of localizations: pictures, drift, merging, filters."""
