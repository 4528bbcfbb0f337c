"""The Ray Serve application: the library's pipeline with its stages on replicas.

Modules here import each other relatively: this folder is called like a part of Ray, and must never hide it.
"""
