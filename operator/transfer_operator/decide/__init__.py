"""The whole life of an experiment, as a pure function of what is seen.

    decide(snapshot, now) -> Decision(status, actions, events, look_again)

The caller writes `status` first and then carries out `actions`; it calls again whenever something changed, and after
`look_again` seconds in any case. Nothing is remembered anywhere else, so calling twice is harmless, a lost event costs a
resync, and a crash between any two writes is repaired by the next call.

An experiment is a list of stages (`transfer_api.stage.plan_stages`), each of which lives like this:

          its artifact is in the storage already (also found while it runs or is suspended)
          ┌───────────────────────────────────────────────────────────────────────┐
          │       inputs complete,                 a pod ended with 0             ▼
          │       a slot is free                   and named its artifact
        Waiting ───────────────────▶ Running ────────────────────────────▶ Complete
             ▲                       │ ▲ │ │
             │   fewer than min for  │ │ │ └──── code 10 or 11, memory twice, a budget spent,
             └───────── too long ────┘ │ │       no pod begins in time ─────────────────────▶ Failed
              suspend is false,        │ │  suspend is true, pods are gone
              a slot is free           │ │
                           Suspended ──┘ │
                               ▲─────────┘

One failed stage ends the experiment; what ran beside it is left as `Suspended`. So is a training that leaves the only slot to the scores of
its own checkpoint. A stage that another experiment makes (`makers`) is waited
for. An evaluation of a checkpoint begins as soon as a pod of the training tells of the snapshot. By what it scored it may end the
experiment in the middle of that training, although it is Complete itself (`evaluation.retention.stop`).
The experiment is Pending until a first pod runs, then Running (or Suspended), and at last Complete or Failed, which nothing changes.

While a stage runs, one record for each worker index says which generation of its pod is wanted. A pod of that generation that ended
or vanished is an incident: the record moves on to the next generation and one counter grows by one, both in the same status
write; the replacement is created because the record asks for it. A pod of any other generation is removed. So an incident is counted
once, whatever is repeated.

Read in this order: `snapshot` (what is seen), `decision` (what is answered), `experiment` (all stages), `stage` (the life of one),
`workers` (its incidents), `verdict` (what the end of a pod means), `deadlines` (what takes too long), `gate` (what may end an experiment
early). `step` is what those work on: one stage in this call, no step of training. The rest only tells: `usage` (GPU-hours and goodput),
`summary` (what people read).
"""

from transfer_operator.decide.decision import CreatePod, Decision, DeletePod, Event
from transfer_operator.decide.experiment import decide
from transfer_operator.decide.snapshot import Pod, PodPhase, Role, Settings, Snapshot

__all__ = ["decide", "Snapshot", "Settings", "Pod", "PodPhase", "Role", "Decision", "CreatePod", "DeletePod", "Event"]
