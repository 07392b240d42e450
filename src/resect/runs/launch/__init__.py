"""A run's cells as jobs of a scheduler: Slurm, or processes of this machine, through submitit.

The cells that are not done are dealt to parts in their fixed order, so that cells of one model stay
together; a part is a job, and all parts are one array. Jobs share nothing but the run folder. A job
that is preempted is put back into the queue, goes through its cells again and leaves out those that
are done. A job that is ended without a word (a killed process, a lost node) is submitted again, up
to `RETRIES` times; one that fails ends the others.

    launch/parts.json       what each part has to do, and the job that does it
    launch/part-0003.json   what it is doing, written by the job itself
    launch/logs/            what jobs print, and submitit's own files
"""

from resect.runs.launch.jobs import Launcher, launch_run, refuse_busy
from resect.runs.launch.part import Part
from resect.runs.launch.resources import Resources, planned
from resect.runs.launch.status import status

__all__ = ["Launcher", "Part", "Resources", "launch_run", "planned", "refuse_busy", "status"]
