"""Kubernetes manifests for KubeRay, from the same plan that a run makes. Pure: nothing is started and no cluster is asked."""
