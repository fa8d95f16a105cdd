"""What a run needs and costs, before it starts."""

from vidgen.plan.planner import TrainingPlan, plan

__all__ = ["plan", "TrainingPlan"]
