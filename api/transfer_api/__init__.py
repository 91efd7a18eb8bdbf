"""The contract: what a user writes, what the operator answers, and what passes between it and the pods.

Nothing here imports torch, kopf or a Kubernetes client; everything else imports this.
"""
