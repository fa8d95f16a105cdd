"""The proving ground: a fixed set of prompts on which a method of sampling can fail."""
