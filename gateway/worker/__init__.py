"""The task worker: a process beside the gateway's, which does what nobody waits for at the other end of a request."""
