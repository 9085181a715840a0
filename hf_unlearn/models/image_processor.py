"""The image processor that is saved beside a view encoder."""

from transformers import CLIPImageProcessor

from hf_unlearn.data.views import ViewConfig


def image_processor_of(views: ViewConfig) -> CLIPImageProcessor:
    """The image processor that prepares pictures as the views' own resizing and normalisation do.

    Args:
        views: the views the model is trained on; `ViewConfig.matching` is the way back.

    Returns:
        A processor that resizes to `[size, size]` (bilinear, antialiased, uncropped) and normalises; `save_pretrained`
        puts it beside the weights, where `AutoImageProcessor` finds it.
    """
    return CLIPImageProcessor(
        size={"height": views.size, "width": views.size},
        resample=2,  # PIL's number for bilinear
        do_center_crop=False,
        image_mean=list(views.mean),
        image_std=list(views.std),
    )
