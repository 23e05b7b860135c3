"""The flags of a command that may run in several processes; see together.py."""

FLAGS = {
    "distributed": ("auto", "auto, on or off: join the other processes of the run"),
    "coordinator": ("", "host:port of process 0"),
    "num_processes": (0, "processes of the run, with --coordinator"),
    "process_id": (-1, "number of this process, from 0, with --coordinator"),
    "connect_timeout": (300, "seconds to wait for the other processes"),
    "heartbeat_timeout": (100, "seconds of silence that mean a process is lost"),
}
