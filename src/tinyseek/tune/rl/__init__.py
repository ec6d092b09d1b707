"""Learning from rewards: a model's own answers, sampled by the engine, scored by plain functions, made likelier or less likely.

options    the settings (no torch)
rewards    reward functions by name or out of a file: called with a time limit, errors named      child  the process they run in
shipped    those that come along: exact answer, format, length, repetition, tool calls, a model as judge
rollouts   answers sampled by the engine over the model that is trained; batches made of them
losses     the arithmetic: advantages, clipped ratios, KL, generalised advantage estimation
grpo ppo   the two stages
"""
