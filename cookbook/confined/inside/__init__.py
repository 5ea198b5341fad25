"""What runs in the confined process. These modules import the standard library and each other only, so that it starts fast.

serve.py         the process that the run starts: draws questions, and forks workers
worker.py        the process that scores answers, between the walls
walls.py         what the walls are: limits, Landlock, seccomp, an audit hook
seccomp.py       the system calls that are left
gym.py, mathematics.py, function.py   what is called there: reasoning-gym, math-verify, a user's function
"""
