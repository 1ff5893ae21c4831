# %% [markdown]
# # What does privacy cost, and what is left?
#
# A frame of events goes in; the same model is trained without privacy and at three epsilons; one picture comes out. The
# events are made up, so that the notebook needs no data: put a pandas or polars frame of your own in their place.
# This file is the notebook's source (`python -m tests.notebook` makes `notebook.ipynb` of it, with its outputs).

# %%
import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

import fedrecall

rng = np.random.default_rng(0)
user = np.repeat(np.arange(500), 20)
item = (user % 5) * 30 + (50 * rng.random(len(user)) ** 2).astype(int)
frame = pa.table({"user": user, "item": item, "time": rng.integers(0, 10**6, len(user))})
data = fedrecall.dataset_from_frame(frame, user="user", item="item", time="time")
print(f"{data.events.n_users} people, {data.events.n_items} items, {data.events.n_events} events")

# %% [markdown]
# ## What a run promises
#
# Noise follows from the promise, and can be asked for without training anything: the noise multiplier of ten releases.

# %%
for epsilon in (8, 2, 0.5):
    print(epsilon, round(fedrecall.privacy.calibrate(epsilon=epsilon, delta=1e-5, steps=10), 2))

# %% [markdown]
# ## Four runs
#
# Without privacy nothing is noised, and nothing is promised. Each run has its own folder with a report under `runs/`.

# %%
settings = {"evaluation.central": False, "evaluation.ablation": False, "rounds.count": 5}
runs = {}
for epsilon in (None, 8.0, 2.0, 0.5):
    runs[epsilon] = fedrecall.run(data, preset="user-eps8", settings=settings | {"privacy.epsilon": epsilon})
    print(epsilon, round(runs[epsilon].metrics["recall@10"], 3))

# %% [markdown]
# A figure means nothing without what it rests on: who is kept from what, and by whom.

# %%
for row in runs[2.0].privacy:
    print(f"{row['name']}: {row['epsilon'] and round(row['epsilon'], 3)}; {row['reason']}")

# %% [markdown]
# ## The picture
#
# Quality against epsilon, between what knows nobody's taste (most popular) and what sees all events in one place
# (EASE).

# %%
figure = Figure(figsize=(6, 3.5), layout="constrained")
axes = figure.subplots()
rivals = {row["who"]: row["recall@10"] for row in runs[8.0].frame("quality").to_pylist()}
private = [epsilon for epsilon in runs if epsilon is not None]
axes.semilogx(private, [runs[epsilon].metrics["recall@10"] for epsilon in private], "o-", label="this model")
axes.axhline(runs[None].metrics["recall@10"], linestyle=":", label="the same, no privacy")
for name, side in (("most_popular", "bottom"), ("ease", "top")):
    axes.axhline(rivals[name], linewidth=0.8, color="grey")
    axes.annotate(f"{name}, no privacy", (private[-1], rivals[name]), va=side, color="grey")
axes.set(xlabel="epsilon at delta 1e-5, unit one user", ylabel="recall@10", ylim=(0, 0.5))
axes.minorticks_off()
axes.set_xticks(private, [f"{epsilon:g}" for epsilon in private])
axes.legend(loc="lower right")
figure

# %% [markdown]
# ## Lists
#
# What one simulated device would show to its user, and everybody's lists as a table. In a deployment every list stays
# on its own device.

# %%
runs[2.0].recommend("7", k=3)

# %%
lists = runs[2.0].recommend_all(k=10)
print(lists.num_rows, lists.column_names)
