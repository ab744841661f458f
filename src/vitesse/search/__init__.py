"""Which architecture is most accurate within a latency, on this machine and these pictures?"""
