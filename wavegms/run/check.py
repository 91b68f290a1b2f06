"""What can be found wrong before anything runs for hours."""

from pathlib import Path

from wavegms.config import Params, ReadingParams, load_params
from wavegms.data.catalog import find_cases, root_of, spec_of
from wavegms.data.classes import with_classes
from wavegms.data.splits import assign_all, lists_of
from wavegms.errors import InputError, require_one_class
from wavegms.files import is_hub_id, sha256_of, write_text
from wavegms.phantom.settings import PHANTOMS, VOLUMES
from wavegms.project import DECODERS, KEPT, PRETRAINED, is_kept, require_pretrained, require_start
from wavegms.recipes import TAKE_COMMON
from wavegms.variants import (
    VARIANTS,
    followed_recipe,
    require_classes,
    require_side,
    require_volumes,
)


def check_inputs(params_file: Path, raw: Path, out: Path) -> None:
    """Checks the parameters and that every dataset can be paired, split and trained on.

    Of the data only names of files are read, so this takes seconds whatever their size. `out` gets
    the same text each time: a pipeline stage that depends on it comes after this check, but does
    not run again because of it. Beside it, in `imported/`, come the hashes of the weights and split
    lists from elsewhere that are used, for the stages that use them to depend on.
    """
    params = load_params(params_file)
    for variant in params.variants:
        _check_variant("variants", variant, params)
        _check_imported_weights(variant, params)
    if params.ablation.datasets:
        for variant in params.ablation.variants:
            _check_variant("ablation.variants", variant, params)
    for variant in params.efficiency.variants:
        size = params.efficiency.image_size
        _check_network("efficiency.variants", variant, "efficiency.image_size", size)
        if VARIANTS[variant].depth > 1:
            raise InputError(
                f"efficiency.variants names {variant}, and costs are measured of single images: "
                "leave it out"
            )
    if "wave_gms" not in params.efficiency.variants:
        raise InputError(
            "efficiency.variants lacks wave_gms, of which the costs of others are given in "
            "multiples: add it"
        )
    for name in params.phantom.datasets:
        if name not in PHANTOMS:
            raise InputError(
                f"phantom.datasets: {name!r} is no simulated scanner, "
                f"choose among {', '.join(PHANTOMS)}"
            )
    if params.autoencoder.source == "path" and not Path(params.autoencoder.path).is_dir():
        raise InputError(
            f"autoencoder.path {params.autoencoder.path} is not a folder: put the weights there "
            "(see data/README.md), or set autoencoder.source to hub or train"
        )
    small = params.autoencoder.train
    if params.autoencoder.source == "train" and small.start_from:
        require_pretrained(small.start_from, small.channels, small.blocks)
    for place in params.foundations.others if params.foundations.datasets else []:
        if not (Path(place).is_dir() or is_hub_id(place)):
            raise InputError(
                f"foundations.others names {place}, which is neither a folder nor a hub id: put "
                "the weights there (see docs/autoencoders.md), or remove it"
            )
    for name in params.reading:
        if name not in (*params.datasets, *params.external):
            raise InputError(
                f"reading names {name}, which is neither among datasets nor external: correct the "
                "name, or remove it"
            )
    if params.training.start_from:
        require_start(params.training.start_from)
    pretrained = params.training.pretrained
    if pretrained and not (Path(pretrained).exists() or is_hub_id(pretrained)):
        raise InputError(
            f"training.pretrained {pretrained} does not exist and is no hub id: put the weights "
            "there, or set it to null"
        )
    for name in params.external:
        if name not in params.phantom.datasets:
            find_cases(name, raw / name)
    for name in params.volumes:
        if name not in params.phantom.datasets and not find_cases(name, raw / name)[0].volume:
            raise InputError(
                f"volumes names {name}, which holds pictures: only volumes are scored in 3-D, so "
                "remove it there"
            )
    for name in params.datasets:
        _check_classes(name, raw / name, params)
        _check_volumes(name, raw / name, params)
        _check_epochs(name, "is trained", params.training.epochs_for(name), params)
        if name in params.ablation.datasets:
            _check_epochs(name, "has its ablation", params.ablation.epochs, params)
        if name in params.foundations.datasets:
            epochs = params.foundations.epochs or None
            _check_epochs(name, "has its autoencoders compared", epochs, params)
        if name not in params.phantom.datasets:
            check_dataset(name, raw / name, params)
    write_text(out, "The parameters and the raw data were checked.\n")
    _note_imports(out.parent / "imported", params)


def _check_classes(name: str, folder: Path, params: Params) -> None:
    """Checks that what is trained on a dataset of several classes knows them."""
    wanted, known = params.reading.get(name), spec_of(name).classes
    root = root_of(name, folder) if folder.is_dir() else folder
    classes = with_classes(name, root, wanted, known).classes
    for variant in params.variants_for(name):
        try:
            require_classes(variant, len(classes))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    if name in params.foundations.datasets:
        require_one_class(len(classes), f"{name}: foundations.datasets", f"leave {name} out there")
    for section in ("training", "evaluation"):
        if getattr(params, section).decoder == "fast":
            require_one_class(len(classes), f"{name}: {section}.decoder fast", "set it to exact")


def _check_volumes(name: str, folder: Path, params: Params) -> None:
    """Checks that what takes windows of slices is trained on volumes."""
    for variant in params.variants_for(name):
        if VARIANTS[variant].depth > 1:
            simulated = name in params.phantom.datasets
            volumes = name == VOLUMES if simulated else find_cases(name, folder)[0].volume
            try:
                require_volumes(variant, volumes)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error


def _check_epochs(dataset: str, what: str, epochs: int | None, params: Params) -> None:
    if epochs and params.training.warmup_epochs >= epochs:
        raise InputError(
            f"training.warmup_epochs is {params.training.warmup_epochs}, but {dataset} {what} "
            f"for {epochs} epochs: the warm-up must be shorter"
        )


def _note_imports(folder: Path, params: Params) -> None:
    source, start = params.autoencoder.source, params.autoencoder.train.start_from
    weights = {"path": Path(params.autoencoder.path)}
    if start:
        weights["train"] = PRETRAINED / f"{start}.safetensors"
    _note(folder / "autoencoder.txt", [weights[source]] if source in weights else [])
    others = [Path(one) for one in params.foundations.others if params.foundations.datasets]
    _note(folder / "foundations.txt", [one for one in others if one.is_dir()])
    for dataset in (*params.datasets, *params.external):
        reading = params.reading.get(dataset, ReadingParams())
        write_text(folder / dataset / "reading.json", reading.model_dump_json() + "\n")
    start = params.training.start_from
    starts = [KEPT / f"{start}.safetensors" if is_kept(start) else Path(start)] if start else []
    starts = [path for path in starts if path.exists()]
    for dataset in params.datasets:
        spec = spec_of(dataset)
        lists = []
        if params.split.method == "published" and spec.split_file:
            lists = [Path(params.split.folder) / spec.split_file]
        elif params.split.method == "lists":
            lists = list(lists_of(Path(params.split.folder)).values())
        _note(folder / dataset / "split.txt", lists)
        for variant in params.variants_for(dataset):
            needed, place = [*starts], params.training.pretrained
            recipe = followed_recipe(variant, params.training.recipe)
            if recipe and recipe.pretrained and place and Path(place).exists():
                needed.append(Path(place))
            if params.training.decoder == "fast" and VARIANTS[variant].autoencoder:
                needed.append(DECODERS)
            if not VARIANTS[variant].trained:
                needed = [params.model.gms_checkpoint_for(dataset)]
            elif VARIANTS[variant].autoencoder == "kl" and Path(params.autoencoder.sd_vae).is_dir():
                needed.append(Path(params.autoencoder.sd_vae))
            _note(folder / dataset / f"{variant}.txt", needed)


def _note(note: Path, needed: list[Path]) -> None:
    """Writes the hashes of files, and of all files in folders."""
    lines = []
    for place in needed:
        inner = place.rglob("*") if place.is_dir() else [place]
        files = sorted(path for path in inner if path.is_file() or path == place)
        lines += [f"{p.as_posix()}: {sha256_of(p) if p.is_file() else 'missing'}" for p in files]
    write_text(note, "\n".join(lines or ["none needed"]) + "\n")


def _check_network(variants_key: str, name: str, size_key: str, size: int) -> None:
    if name not in VARIANTS:
        raise InputError(f"{variants_key}: {name!r} is unknown, choose among {', '.join(VARIANTS)}")
    require_side(name, size, size_key)


def _check_variant(key: str, name: str, params: Params) -> None:
    _check_network(key, name, "image_size", params.image_size)
    followed_recipe(name, params.training.recipe)
    spec = VARIANTS[name]
    sd_vae = params.autoencoder.sd_vae
    if spec.autoencoder == "kl" and not (Path(sd_vae).is_dir() or is_hub_id(sd_vae)):
        raise InputError(
            f"autoencoder.sd_vae {sd_vae!r} is neither a folder nor a hub id, but variant {name} "
            "needs an SD-VAE: correct it, or leave the variant out"
        )


def _check_imported_weights(name: str, params: Params) -> None:
    if not VARIANTS[name].trained:
        for dataset in params.datasets:
            checkpoint = params.model.gms_checkpoint_for(dataset)
            if not checkpoint.is_file():
                raise InputError(
                    f"{checkpoint} does not exist, but variant {name} needs GMS's checkpoint for "
                    f"{dataset}: put it there, set model.gms_checkpoint, or leave the variant out"
                )


def check_dataset(name: str, folder: Path, params: Params) -> int:
    """Checks that a dataset can be paired, split and trained on, by the names of its files.

    Returns the number of its test images, or volumes, over all folds.
    """
    cases = find_cases(name, folder)
    split_file = spec_of(name).split_file
    splits = assign_all(
        cases,
        params.split.method,
        params.split.folds,
        folder=root_of(name, folder),
        split_file=Path(params.split.folder) / split_file if split_file else None,
        lists=Path(params.split.folder),
        test_fraction=params.split.test_fraction,
        validation_fraction=params.split.validation_fraction,
        seed=params.seed,
    )
    parts = [list(split.values()) for split in splits]
    if "test" not in parts[0]:
        raise InputError(
            f"{name} has no test images by split.method {params.split.method}: raise "
            "split.test_fraction, or list some in test.txt"
        )
    tests = sum(fold.count("test") for fold in parts)
    if cases[0].volume:  # how many slices they have is not known by their names
        return tests
    count = min(sum(map(fold.count, params.training.train_splits)) for fold in parts)
    for variant in params.variants_for(name):
        batch_size = VARIANTS[variant].batch_size_or(params.training.batch_size)
        recipe = followed_recipe(variant, params.training.recipe)
        if recipe and (batch_size := recipe.batch_size_for(params.image_size, count)) > count:
            raise InputError(
                f"the published batch size of {variant} is {batch_size}, but {name} has only "
                f"{count} images to train on: {TAKE_COMMON}, or leave it out"
            )
        if VARIANTS[variant].trained and batch_size > count:
            raise InputError(
                f"training.batch_size is {batch_size} for {variant}, but {name} has only {count} "
                f"images to train on: choose at most {count}, or leave the variant out"
            )
    return tests
