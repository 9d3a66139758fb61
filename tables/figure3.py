"""PCL, Figure 3: how balanced the clusters are, and what they tell of the classes."""

from typing import Any

import numpy as np

from tables import courses, pictures
from tables.rows import MOCO, PCL, PCL_FIXED
from tables.schema import Drawing, Figure

Found = dict[str, list[dict[str, Any]]]


def draw(found: Found) -> Drawing:
    """(a) from the last probes of both PCLs, (b) from all probes of MoCo and PCL."""
    picture, ((left, right),) = pictures.axes(2)
    k = courses.middle(found["pcl"])
    rows = [("pcl-fixed", "fixed"), ("pcl", "estimated")]
    last = {name: {r["subject"]["seed"]: r["probes"][-1]["clusters"][k] for r in found[name]} for name, _ in rows}
    data = []
    widest = max(int(size) for of in last.values() for sizes in of.values() for size in sizes["histogram"])
    edges = np.linspace(0, widest + 1, min(widest + 2, 31))
    for i, (name, title) in enumerate(rows):
        counts = np.mean([np.histogram([int(size) for size in sizes["histogram"]], edges, weights=list(sizes["histogram"].values()))[0]
                          for sizes in last[name].values()], axis=0)
        mean = {what: np.mean([sizes[what] for sizes in last[name].values()]) for what in ("sd", "max", "empty", "gini")}
        left.stairs(counts, edges, fill=i == 0, color=pictures.COLOURS[1 - i], alpha=0.45 if i == 0 else 1,
                    hatch=pictures.HATCHES[1 - i] if i == 0 else None, linewidth=1.8,
                    label=f"{title}: sd {mean['sd']:.1f}, max {mean['max']:.0f}, empty {mean['empty']:.1f}, Gini {mean['gini']:.3f}")
        data += [[name, str(seed), "", k, "clusters of size " + size, str(count)] for seed, sizes in sorted(last[name].items())
                 for size, count in sorted(sizes["histogram"].items(), key=lambda item: int(item[0]))]
        data += [[name, str(seed), "", k, what, f"{sizes[what]:g}"] for seed, sizes in sorted(last[name].items())
                 for what in ("mean", "sd", "max", "empty", "gini")]
    left.set(title=f"(a) Cluster sizes, K = {k}", xlabel="images in a cluster", ylabel="clusters (mean over seeds)")
    left.legend(title="concentration", loc="upper right", fontsize=7.5)
    for i, (name, title) in enumerate((("moco", "InfoNCE (MoCo)"), ("pcl", "ProtoNCE (PCL)"))):
        for j, what in enumerate(("prototypes", "features")):
            def value(probe: dict[str, Any], what: str = what) -> float:
                return float(probe["feature_mi"] if what == "features" else probe["clusters"][k]["mi"])

            courses.curve(right, found[name], value, label=f"{title}, {what}", colour=pictures.COLOURS[i], dash=pictures.DASHES[j],
                          marker=pictures.MARKERS[2 * i + j])
            data += [[name, str(seed), str(epochs), k if what == "prototypes" else "", f"mutual information of {what}", f"{mi:.6f}"]
                     for seed, of in sorted(courses.by_seed(found[name], value).items()) for epochs, mi in sorted(of.items())]
    right.set(title="(b) Mutual information with the class", xlabel="epochs of pretraining", ylabel="nats",
              ylim=(0, found["pcl"][0]["probes"][0]["upper_bound"] * 1.02))
    right.axhline(found["pcl"][0]["probes"][0]["upper_bound"], color="#555", linewidth=0.8)
    right.annotate("entropy of the classes", (0, found["pcl"][0]["probes"][0]["upper_bound"]), xytext=(0, -9),
                   textcoords="offset points", fontsize=7.5, color="#555")
    right.legend(loc="lower right", fontsize=7.5)
    sd = {name: {seed: float(sizes["sd"]) for seed, sizes in of.items()} for name, of in last.items()}
    end = {(name, what): {r["subject"]["seed"]: float(r["probes"][-1]["feature_mi"] if what == "features" else
                                                      r["probes"][-1]["clusters"][k]["mi"]) for r in found[name]}
           for name in ("moco", "pcl") for what in ("features", "prototypes")}
    claims = (courses.claim("estimated concentration yields more balanced clusters (a smaller sd of sizes)", sd["pcl-fixed"], sd["pcl"]),
              courses.claim("prototypes tell more of the class than instance features (ProtoNCE, at the end)",
                            end["pcl", "prototypes"], end["pcl", "features"]),
              courses.claim("prototypes of ProtoNCE tell more of the class than those of InfoNCE (at the end)",
                            end["pcl", "prototypes"], end["moco", "prototypes"]))
    return Drawing(picture, ("row", "seed", "epochs", "K", "quantity", "value"), data, claims)


FIGURE = Figure(
    name="figure3",
    title="Cluster sizes and mutual information",
    paper='PCL: Li et al., "Prototypical Contrastive Learning of Unsupervised Representations"',
    source="arXiv preprint of 2020, Figure 3 (curves alone: the paper prints no values)",
    caption="(a) Sizes of the k-means clusters at the end of pretraining, with the concentration phi of Eq. 12 and with a fixed one. "
            "(b) Mutual information with the class, in nats: of the momentum embedding by Ross's nearest-neighbour estimator (k = 3, "
            "unit vectors, at most 100 000 images; the paper's reference [31]), of the assigned prototypes by the plug-in estimator, "
            "since Ross's breaks down where points coincide. The two estimators differ in bias, the plug-in one being too large where "
            "clusters are small: lines of one kind can be compared, a line of features with one of prototypes hardly. Lines are means "
            "over pretraining seeds, bands reach from the least to the greatest.",
    alternative="Left, a histogram of cluster sizes for a fixed and an estimated concentration; right, four rising curves of mutual "
                "information over the epochs, for features and prototypes of MoCo and PCL. The numbers are in the CSV.",
    rows=(MOCO, PCL, PCL_FIXED),
    scores=(("course", "imagenet"),),
    draw=draw,
)
