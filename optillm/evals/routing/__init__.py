"""Training the router: problems, results of techniques on them, and a model of those."""
