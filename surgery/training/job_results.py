"""What a job leaves in its folder: the network, the table, the curves."""

import torch
from torch import nn

import surgery
from surgery.training.job_stages import Job
from surgery.training.outcome import plot_curves
from surgery.training.task import DetailedTask, watched


def write_results(job: Job, tuned: nn.Module) -> None:
    """Write ``m.safetensors``, reload it and compare logits, then ``curve.png`` and ``results.json``; print the table.

    Raises:
        CheckpointError: the reloaded network gives other logits.
        OSError: a file cannot be written.
    """
    path, outcome = job.output / "m.safetensors", job.outcome
    surgery.save(tuned, path, preprocessing=job.preprocessing)
    same = _same_logits(job, tuned, surgery.load(path, job.accelerator.device))
    plot_curves(job.output / "curve.png", outcome, job.recipe.title)
    controls = job.task.controls(job.data) if isinstance(job.task, DetailedTask) else {}
    outcome.write_json(
        job.output / "results.json",
        recipe=job.recipe.to_dict(),
        precision=job.accelerator.mixed_precision,
        reloaded_identical=same,
        controls=controls,
    )
    job.say("\n" + outcome.table())
    for name, figures in controls.items():
        job.say(f"control: {name}: {', '.join(f'{figure} {value:.2f} %' for figure, value in figures.items())}")
    job.say(f"\n{path} reloaded: logits {'identical' if same else 'DIFFERENT'} on {len(job.data.test)} test images")  # type: ignore[arg-type]
    job.say(f"curve: {job.output / 'curve.png'}   numbers: {job.output / 'results.json'}")
    if not same:
        raise surgery.errors.CheckpointError(f"{path} does not give the logits of the network that was saved")


def _same_logits(job: Job, saved: nn.Module, reloaded: nn.Module) -> bool:
    device = job.accelerator.device
    with torch.inference_mode():
        batches = (batch[0].to(device) for batch in watched(job.test, job.accelerator))
        return all(torch.equal(saved(images), reloaded(images)) for images in batches)
