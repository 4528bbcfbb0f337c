"""The Ray Serve application: the library's pipeline over many replicas. It is made next; see the changelog."""
