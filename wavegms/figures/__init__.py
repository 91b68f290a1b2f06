"""Pictures: of cases, of results, of the method."""
