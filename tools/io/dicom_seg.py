"""A tissue map as DICOM SEG in the geometry of its CT: which code each tissue has, and what is repeated of the CT.

It needs highdicom, which is installed by who wants DICOM SEG. Nothing else of the project is imported: the app of
`tools/serving/deploy.py` carries a copy of this file.
"""

import highdicom as hd
import numpy as np
from highdicom.color import CIELabColor
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

MODEL, MAKER = "lung_tissue_seg", "The DiffLung bundle developers"
DESCRIPTION = "Lung tissue, research use only"
REPEATED = ("FrameOfReferenceUID", "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber")
REPEATED += ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
# What a tissue's segment is, and its colour in the tools' figures. pydicom's dictionary (DICOM PS3.16) has no emphysema
# and no consolidation of the lung: these are SNOMED CT's disorders.
FINDINGS = {
    "healthy": (codes.SCT.Lung, "#8a8a8a"),
    "ground_glass": (codes.DCM.GroundGlassOpacity, "#56b4e9"),
    "fibrosis": (codes.SCT.Fibrosis, "#e69f00"),
    "emphysema": (Code("87433001", "SCT", "Pulmonary emphysema"), "#009e73"),
    "consolidation": (Code("95436008", "SCT", "Lung consolidation"), "#cc79a7"),
}


def check_repeated(header: Dataset, path: object) -> None:
    """Raise ValueError if a slice of a CT lacks what a DICOM SEG repeats of it.

    Args:
        header: The slice's tags.
        path: Its file, for the message.
    """
    missing = [tag for tag in REPEATED if tag not in header]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}, which a DICOM SEG repeats")


def describe(labels: dict[str, int], version: str) -> list[hd.seg.SegmentDescription]:
    """Return a description of each tissue as a segment, in the order of their values.

    Raises:
        ValueError: if a tissue has no code here, or their values are not 1, 2, 3, ...
    """
    tissues = sorted((name for name, value in labels.items() if value), key=labels.get)
    unknown = [name for name in tissues if name not in FINDINGS]
    if unknown:
        raise ValueError(f"label {unknown[0]} has no DICOM code; there are codes for {', '.join(FINDINGS)}")
    if [labels[name] for name in tissues] != list(range(1, len(tissues) + 1)):
        raise ValueError(f"the model's labels are {labels}; segments are numbered 1, 2, 3, ...")
    algorithm = hd.AlgorithmIdentificationSequence(MODEL, codes.DCM.ArtificialIntelligence, version)
    segments = []
    for number, name in enumerate(tissues, 1):
        ill = name != "healthy"
        finding, colour = FINDINGS[name]
        segment = hd.seg.SegmentDescription(
            number,
            segment_label=name.replace("_", " "),
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure if ill else codes.SCT.Tissue,
            segmented_property_type=finding,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            anatomic_regions=[codes.SCT.Lung],
            display_color=CIELabColor.from_string(colour),
        )
        if not ill:
            normal = hd.sr.CodedConcept.from_code(codes.SCT.Normal)
            segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [normal]
        segments.append(segment)
    return segments


def instance(series_number: int) -> dict:
    """Return what every new DICOM object has: identities of its own, and its maker."""
    own = {"series_instance_uid": hd.UID(), "sop_instance_uid": hd.UID()}
    return own | {"series_number": series_number, "instance_number": 1, "manufacturer": MAKER}


def segmentation(tissues: np.ndarray, slices: list[Dataset], labels: dict[str, int], version: str) -> Dataset:
    """Return tissues as DICOM SEG in the geometry of the CT.

    Args:
        tissues: Label values, shape (slices, rows, columns).
        slices: The CT's DICOM slices, in that order.
        labels: Tissue name to value.
        version: Version of the bundle.
    """
    return hd.seg.Segmentation(
        source_images=slices,
        pixel_array=np.ascontiguousarray(tissues),
        segmentation_type="BINARY",
        segment_descriptions=describe(labels, version),
        **instance(900),
        manufacturer_model_name=MODEL,
        software_versions=version,
        device_serial_number="0",
        content_label="TISSUES",
        content_description=DESCRIPTION,
        series_description=f"{DESCRIPTION}: {slices[0].get('SeriesDescription', '')}"[:64],
    )


def dcmqi_metadata(labels: dict[str, int]) -> dict:
    """Return names, codes and colours of the tissues as dcmqi's ``itkimage2segimage`` and MONAI Label read them.

    Args:
        labels: Tissue name to value.
    """
    segments = []
    for segment in describe(labels, ""):
        name = segment.segment_label
        colour = bytes.fromhex(FINDINGS[name.replace(" ", "_")][1].lstrip("#"))
        attributes = {
            "labelID": int(segment.segment_number),
            "SegmentLabel": name,
            "SegmentDescription": DESCRIPTION,
            "SegmentAlgorithmType": "AUTOMATIC",
            "SegmentAlgorithmName": MODEL,
            "SegmentedPropertyCategoryCodeSequence": _code(segment.segmented_property_category),
            "SegmentedPropertyTypeCodeSequence": _code(segment.segmented_property_type),
            "AnatomicRegionSequence": _code(codes.SCT.Lung),
            "recommendedDisplayRGBValue": list(colour),
        }
        if name == "healthy":
            attributes["SegmentedPropertyTypeModifierCodeSequence"] = _code(codes.SCT.Normal)
        segments.append(attributes)
    return {"SeriesDescription": DESCRIPTION, "ContentLabel": "TISSUES", "segmentAttributes": [segments]}


def _code(concept: Code) -> dict[str, str]:
    """Return a coded concept in dcmqi's words."""
    return {
        "CodeValue": concept.value,
        "CodingSchemeDesignator": concept.scheme_designator,
        "CodeMeaning": concept.meaning,
    }
