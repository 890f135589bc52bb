#!/usr/bin/env bash
# CAMELYON16 as the DAS-MIL paper (arXiv 2305.10552) prepared it: 256 um tiles read as 224 px, stain normalised by
# Macenko's method, CTransPath features, the official split. Give it the folder of slides (searched whole, so the
# challenge's own folders are fine) and the challenge's table of the test slides, and run it in a folder with room:
#
#     bash camelyon16.sh /data/CAMELYON16 /data/CAMELYON16/testing/reference.csv
#
# Have a GPU for step 2. Interrupted, it goes on where it was when you run it again. A slide that cannot be tiled stops it
# (a broken download, most likely: fetch it again); one whose stain cannot be found is left out and named. A third word,
# --quick, shows the way on a few slides with random weights: the result means nothing.
#
# What differs from the paper: tissue is found by wsimil (there: by edges in each tile), stain is brought to the
# reference that most implementations of Macenko's method share, which need not be the paper's, and the training slides
# give a part for validation, which decides when to stop (there: a fixed number of epochs, settings chosen on the test).
set -euo pipefail

slides=${1:?name the folder of slides} reference=${2:?name reference.csv of the test slides}
weights=(); epochs=60
if [ "${3:-}" = "--quick" ]; then weights=(--weights random:0); epochs=2; fi

# 0. Which slides, and what they are. Training slides are called after their label; the test slides' labels are in the
#    table: `test_001,Tumor,IDC,Macro`. Three slides are left out, as in the paper: normal_086, normal_144, and
#    test_049, a copy of another one. Masks (tumor_001_mask.tif) are no slides. The table does not tell whom a slide was
#    taken from, so each counts as a patient of its own. The tables are made once: take a slide's rows out of both to
#    leave it out too, one that step 1 fails on, say; once it is tiled, its row in labels.csv is the one that counts.
if [ ! -e labels.csv ]; then python3 - "$slides" "$reference" <<'PYTHON'
import csv
import re
import sys
from collections import Counter
from pathlib import Path

folder, reference = map(Path, sys.argv[1:])
left_out = {"normal_086", "normal_144", "test_049"}
with reference.open(newline="", encoding="utf-8-sig") as file:
    truth = {row[0].strip().lower().removesuffix(".tif"): row[1].strip().lower() for row in csv.reader(file) if row[1:]}

rows = []
for path in sorted(folder.rglob("*.tif")):
    name = path.stem.lower()
    if not re.fullmatch(r"(normal|tumor|test)_\d{3}", name) or name in left_out:
        continue
    kind, split = name[:-4], "test" if name.startswith("test") else "train"
    label = truth.get(name) if split == "test" else kind
    if label not in ("normal", "tumor"):
        sys.exit(f"{reference} does not tell whether {name} is Normal or Tumor: is it the table of the test slides?")
    rows.append((path.relative_to(folder).with_suffix("").as_posix(), label, name, split))
if not rows:
    sys.exit(f"{folder} holds no slides of CAMELYON16, such as normal_001.tif")

for table, header, columns in (("slides.csv", "slide", 1), ("labels.csv", "slide_id,label,patient_id,split", 4)):
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([header.split(","), *(row[:columns] for row in rows)])

found = Counter((split, label) for _, label, _, split in rows)
published = {("train", "normal"): 158, ("train", "tumor"): 111, ("test", "normal"): 80, ("test", "tumor"): 49}
for part, number in published.items():
    print(f"{' '.join(part)}: {found[part]} of {number} slides")
PYTHON
fi

# 1. Tiles: 256 um squares to be read as 224 px, 1.143 um/px. The files tell their resolution, which differs between the
#    two hospitals; a tile is the same piece of tissue in both. Look at tiles/**/*.jpg before you go on.
wsimil tile "$slides" --slides-csv slides.csv --tile-um 256 --tile-px 224

# 2. Features. Each slide's two stains are found on a sample of its tiles, and every tile is recombined with those of a
#    reference. CTransPath comes from its hub; `wsimil weights add ctranspath ctranspath.pth` takes a file instead.
#    Slides that show no two stains fail, named here and in feats/summary.csv, and step 4 trains without them: wsimil
#    leaves with 1 then, and has told of all slides. Any other error stops here.
status=0
told=$(wsimil extract --model ctranspath --stain macenko ${weights[@]+"${weights[@]}"}) || status=$?
echo "$told"
case "$status $told" in
0\ *) ;;
1\ *"see feats/summary.csv"*) echo "going on without the slides that failed: feats/summary.csv tells why" ;;
*) exit "$status" ;;
esac

# 3. How far tiles are from each other: the length scales of the model come from the training slides' distances.
wsimil distances

# 4. The model. `--aggregator das-mil-paper --out model-paper` trains the published configuration instead.
#    model/report.html tells how it does on the official test slides, model/predictions.csv slide by slide.
wsimil train --bags feats/ --labels labels.csv --aggregator das-mil --epochs "$epochs"

# 5. A slide straight from its file: tiled, normalised and encoded as in training, because the checkpoint says how. It is
#    the first test slide in the table of step 4, which holds none that failed.
wsimil predict "$slides/$(awk -F, '$8 == "test" { print $1; exit }' model/predictions.csv).tif"
