"""What a run needs and costs, before it starts."""

from vidgen.plan.planner import Plan, plan

__all__ = ["plan", "Plan"]
