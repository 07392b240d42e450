"""The machine: its memory, and the processes of a job."""
