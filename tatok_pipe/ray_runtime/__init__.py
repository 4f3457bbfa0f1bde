"""Everything that starts Ray, actors and workers. With the entries, the only code that imports ray."""

from tatok_pipe.ray_runtime.actor_plan import ActorPlan, ActorsConfig, plan_actors, prefer_many
from tatok_pipe.ray_runtime.cluster import check_ray_can_start, has_gpu, start_ray
from tatok_pipe.ray_runtime.shard_run import RunState, run_shards
from tatok_pipe.ray_runtime.training import Driver, ElasticWorkersConfig, WorkersConfig, run_training

__all__ = [
    "ActorPlan",
    "ActorsConfig",
    "Driver",
    "ElasticWorkersConfig",
    "RunState",
    "WorkersConfig",
    "check_ray_can_start",
    "has_gpu",
    "plan_actors",
    "prefer_many",
    "run_shards",
    "run_training",
    "start_ray",
]
