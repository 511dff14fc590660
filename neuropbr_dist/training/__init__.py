"""The GAN step, the loop around it, and how a run is put together.

run            from a configuration to the end of its training
start          how a person starts a run; `resume` and `first_weights` say from what
setup          every choice of a run, made once; `stages` of a run with several
estimate       memory that a run takes, and the plan (`memory`) that fits
sharing        samples that ranks share by rows
networks       the two networks, built and sharded
loop           stages, steps, validations and saves in the order of the cursor
step           the GAN step
objective      losses of a step
schedule       learning rates
ema            the moving average of weights
validation     held-out samples; `baseline` compares mean maps
state          what a checkpoint holds
boundary       between two steps: stop, save
faults         data that can't be read, updates that aren't finite
step_log       means over steps; `flops`, `profile`, `timings` measure
folder         the run's folder
facts          what a start tells of itself
debug          one batch on one device, looked at closely; `doctor` compares nodes
"""
