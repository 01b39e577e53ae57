#!/usr/bin/env bash
# The measurements of docs/finetuning.md, about three hours on two cores:
#
#   bash benchmarks/cifar10.sh CIFAR10 RUNS
#
# CIFAR10 holds train/CLASS/*.jpg and test/CLASS/*.jpg. An interrupted run
# resumes, and a finished one is skipped.
set -euo pipefail
data=$(realpath "$1") runs=$2
mkdir -p "$runs"
cd "$(dirname "$0")/.."

train() { # NAME, folder, then other flags
  local name=$1 folder=$2
  shift 2
  python launch/train.py --gin_file=gin/finetune_folder.gin \
    --gin_file=gin/data/cifar10.gin --gin_param="DATA_DIR = '$folder'" \
    --gin_param="POLICY = 'mixed_bfloat16'" --workdir="$runs/$name" "$@"
}

copy() { # the first N images of each of some classes: TARGET N CLASSES...
  local target=$1 count=$2 class images
  shift 2
  [ -e "$target" ] && return
  for class in "$@"; do
    mkdir -p "$target.part/train/$class" "$target.part/test"
    images=("$data/train/$class"/*)
    cp "${images[@]:0:count}" "$target.part/train/$class/"
    cp -r "$data/test/$class" "$target.part/test/"
  done
  mv "$target.part" "$target"
}

mapfile -t classes < <(ls "$data/train")
copy "$runs/data/tenth" 500 "${classes[@]}"
copy "$runs/data/first_half" 5000 "${classes[@]:0:5}"
copy "$runs/data/second_half" 5000 "${classes[@]:5}"
copy "$runs/data/second_tenth" 500 "${classes[@]:5}"

# Plain steps against half as many of SAM, which cost the same.
for seed in 0 1 2; do
  options=(--gin_param="SEED = $seed")
  sam=(--gin_file=gin/overlays/sam.gin)
  train "full_plain_$seed" "$data" "${options[@]}" --gin_param="EPOCHS = 2"
  train "full_sam_$seed" "$data" "${options[@]}" "${sam[@]}" \
    --gin_param="EPOCHS = 1"
  train "tenth_plain_$seed" "$runs/data/tenth" "${options[@]}" \
    --gin_param="EPOCHS = 20"
  train "tenth_sam_$seed" "$runs/data/tenth" "${options[@]}" "${sam[@]}" \
    --gin_param="EPOCHS = 10"
done

# Five classes, then the other five.
train pretrained "$runs/data/first_half" --gin_param="EPOCHS = 8"
for size in half tenth; do
  epochs=$([ "$size" = half ] && echo 2 || echo 20)
  for seed in 0 1 2; do
    options=(--gin_param="SEED = $seed" --gin_param="EPOCHS = $epochs")
    train "scratch_${size}_$seed" "$runs/data/second_$size" "${options[@]}"
    train "finetuned_${size}_$seed" "$runs/data/second_$size" "${options[@]}" \
      --gin_param="WEIGHTS = '$runs/pretrained'"
  done
done

# Ablations of the recipe's values; the baseline is full_plain_0.
train skip_gain_0 "$data" --gin_param="EPOCHS = 2" \
  --gin_param="nfnet.NFNet.skip_gain = 0.0"
for rate in 0.03 0.3; do
  train "rate_$rate" "$data" --gin_param="EPOCHS = 2" \
    --gin_param="PEAK_LR = $rate"
done
for clipping in None 0.01 1.0; do
  train "clipping_$clipping" "$data" --gin_param="EPOCHS = 2" \
    --gin_param="sgd.SGD.clipping = $clipping"
done

# All of it for long: at full resolution.
train long "$data" --gin_param="VARIANT = 'pico'" --gin_param="EPOCHS = 25"
