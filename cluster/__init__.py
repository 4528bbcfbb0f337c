"""Operating the application: manifests, load, failures, and a model of sizes that are not at hand.

Imported by nothing.
"""
