"""The app for MONAI Deploy: a CT as a DICOM series in; its tissues as DICOM SEG, their extents as DICOM SR and CSV out.

``tools/serving/deploy.py`` copies this file as ``__main__.py`` into a folder that also holds what it imports, the
bundle's ``scripts``, ``extents.py`` and ``dicom_seg.py``. Python puts that folder on its path, where the bundle's
``inferer`` finds ``scripts`` too. It runs in the environment of MONAI Deploy and is never imported by the tools.
Research use only.
"""

import sys
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
from dicom_seg import DESCRIPTION, FINDINGS, MAKER, MODEL, check_repeated, describe, instance, segmentation
from extents import region_extents, write_rows
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType, Operator
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from monai.deploy.operators.dicom_series_to_volume_operator import DICOMSeriesToVolumeOperator
from monai.deploy.operators.monai_bundle_inference_operator import (
    IOMapping,
    MonaiBundleInferenceOperator,
    get_bundle_config,
)
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from scripts.dicom import check_series, dicom_files

SITES = {
    "whole": {"anatomic_location": codes.SCT.Lung},
    "right": {"anatomic_location": codes.SCT.Lung, "laterality": codes.SCT.Right},
    "left": {"anatomic_location": codes.SCT.Lung, "laterality": codes.SCT.Left},
    "upper": {"anatomic_location": codes.SCT.UpperZoneOfLung},
    "middle": {"anatomic_location": codes.SCT.MiddleZoneOfLung},
    "lower": {"anatomic_location": codes.SCT.LowerZoneOfLung},
    "central": {"anatomic_location": codes.SCT.Lung, "topographical_modifier": codes.SCT.Central},
    "peripheral": {"anatomic_location": codes.SCT.Lung, "topographical_modifier": codes.SCT.Peripheral},
}
ML = Code("ml", "UCUM", "milliliter")
# The dictionary has no code for the two percentages: these are private, as 99 says.
SHARE = (Code("tissue_percent", "99DIFFLUNG", "Share of the volume of lung"), codes.UCUM.Percent)
DARK = (Code("below_950_percent", "99DIFFLUNG", "Share of the lung below -950 HU"), codes.UCUM.Percent)


def find_series(root: Path) -> Path:
    """Return the folder below ``root``, or ``root`` itself, that holds the one CT.

    Raises:
        ValueError: if there is not exactly one folder of DICOM files, if they are not one whole series of CT (see
            ``scripts.dicom``), or if they lack what a DICOM SEG repeats of them.
    """
    folders = [folder for folder in (root, *sorted(root.rglob("*"))) if folder.is_dir()]
    held = {folder: files for folder in folders if (files := dicom_files(folder))}
    if len(held) != 1:
        names = f" ({', '.join(map(str, held))})" if held else ""
        raise ValueError(f"{root} holds {len(held)} folders with DICOM files{names}; the app labels one series")
    folder, files = held.popitem()
    check_series(folder)
    check_repeated(dcmread(files[0], stop_before_pixels=True), files[0])
    return folder


def find_model(path: Path) -> Path:
    """Return the TorchScript file at or below a path; raise ValueError if there is not exactly one."""
    found = [path] if path.is_file() else sorted(path.rglob("*.ts"))
    if len(found) != 1:
        raise ValueError(f"{path} holds {len(found)} TorchScript files (.ts), not one; name one by -m")
    return found[0]


def measure_extents(hu: np.ndarray, tissues: np.ndarray, affine: np.ndarray, labels: dict[str, int]) -> dict | None:
    """Return region to measure to value as ``python -m tools quantify`` does, or None where there is no lung.

    Args:
        hu: CT in HU, shape (slices, rows, columns).
        tissues: Label values, the same shape.
        affine: Affine from columns, rows and slices to RAS.
        labels: Tissue name to value.
    """
    if not tissues.any():
        return None
    volumes = [nib.Nifti1Image(np.swapaxes(array, 0, 2), affine) for array in (hu.astype(np.float32), tissues)]
    hu, tissues = (nib.as_closest_canonical(volume) for volume in volumes)
    spacing = np.array(nib.affines.voxel_sizes(hu.affine))
    return region_extents(np.asarray(hu.dataobj), np.asarray(tissues.dataobj), spacing, labels)


def report(found: dict | None, seg: Dataset, slices: list[Dataset], version: str) -> Dataset:
    """Return the extents as a DICOM SR (TID 1500): a group per tissue, which names its segment, and one for the lung.

    Args:
        found: Extents of :func:`measure_extents`.
        seg: Segmentation of :func:`segmentation`.
        slices: The CT's DICOM slices.
        version: Version of the bundle.
    """
    rows = found or {"whole": {"lung_ml": 0.0}}
    groups = [_group("lung", codes.SCT.Lung, rows, {
        "lung_ml": (codes.SCT.Volume, ML), "below_950_percent": DARK,
        "mean_hu": (codes.DCM.MeanAttenuationCoefficient, codes.UCUM.HounsfieldUnit),
    })]  # fmt: skip
    for segment in seg.SegmentSequence if found else []:
        name = segment.SegmentLabel.replace(" ", "_")
        measures = {f"{name}_ml": (codes.SCT.Volume, ML), f"{name}_percent": SHARE}
        reference = None
        if rows["whole"][f"{name}_ml"]:
            reference = hd.sr.ReferencedSegment.from_segmentation(seg, segment.SegmentNumber)
        groups.append(_group(segment.SegmentLabel, FINDINGS[name][0], rows, measures, reference))
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[MODEL, version]), name=MODEL, manufacturer_name=MAKER, model_name=version
    )
    content = hd.sr.MeasurementReport(
        hd.sr.ObservationContext(hd.sr.ObserverContext(codes.DCM.Device, device)),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
    )
    return hd.sr.Comprehensive3DSR(
        evidence=[seg, *slices],
        content=content[0],
        **instance(901),
        is_complete=True,
        series_description=DESCRIPTION,
    )


def _group(name: str, finding: Code, rows: dict, measures: dict, segment: hd.sr.ReferencedSegment | None = None):
    """Return one finding's measures in every region; one that the CT does not have refers to no segment."""
    measurements = [
        hd.sr.Measurement(concept, round(row[key], 3), unit, finding_sites=[hd.sr.FindingSite(**SITES[region])])
        for region, row in rows.items()
        for key, (concept, unit) in measures.items()
        if row.get(key) is not None
    ]
    given = {
        "tracking_identifier": hd.sr.TrackingIdentifier(hd.UID(), name),
        "finding_type": finding,
        "measurements": measurements,
    }
    if segment is None:
        return hd.sr.MeasurementsAndQualitativeEvaluations(**given)
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(**given, referenced_segment=segment)


class CTVolumeOperator(DICOMSeriesToVolumeOperator):
    """The SDK's, with pixels of their own size: its affine (4.0.0) takes the height of a pixel for its width."""

    def compute_affine_transform(self, s_1, s_n, n, series) -> None:
        super().compute_affine_transform(s_1, s_n, n, series)
        height_mm, width_mm = (float(size) for size in s_1[0x0028, 0x0030].value)
        for affine in (series.dicom_affine_transform, series.nifti_affine_transform):
            for axis, size_mm in enumerate((width_mm, height_mm)):
                affine[:3, axis] *= size_mm / np.linalg.norm(affine[:3, axis])


class ResultsOperator(Operator):
    """Write tissues.dcm (SEG), measurements.dcm (SR) and quantification.csv."""

    def __init__(self, fragment, *args, folder: Path, labels: dict[str, int], version: str, **kwargs) -> None:
        self.folder, self.labels, self.version = folder, labels, version
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec) -> None:
        for name in ("image", "pred", "study_selected_series_list"):
            spec.input(name)

    def compute(self, op_input, op_output, context) -> None:
        image, tissues = op_input.receive("image"), op_input.receive("pred").asnumpy()
        series = op_input.receive("study_selected_series_list")[0].selected_series[0].series
        slices = [instance.get_native_sop_instance() for instance in series.get_sop_instances()]
        seg = segmentation(tissues, slices, self.labels, self.version)
        found = measure_extents(image.asnumpy(), tissues, image.metadata()["affine"], self.labels)
        self.folder.mkdir(parents=True, exist_ok=True)
        seg.save_as(self.folder / "tissues.dcm")
        report(found, seg, slices, self.version).save_as(self.folder / "measurements.dcm")
        write_rows(self.folder / "quantification.csv", {slices[0].SeriesInstanceUID: found}, self.labels)


class TissueApp(Application):
    """Load the series, label it with the bundle, write the results."""

    def __init__(self, context: AppContext, series: Path, model: Path, labels: dict[str, int], version: str) -> None:
        super().__init__()
        self.app_context, self.series, self.model = context, series, model
        self.labels, self.bundle_version = labels, version  # an Application has a version of its own

    def compose(self) -> None:
        once = CountCondition(self, 1)  # else the folder is read again and again
        load = DICOMDataLoaderOperator(self, once, input_folder=self.series, name="load")
        select = DICOMSeriesSelectorOperator(self, name="select")
        volume = CTVolumeOperator(self, name="volume")
        infer = MonaiBundleInferenceOperator(
            self,
            app_context=self.app_context,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=self.model,
            name="infer",
        )
        folder = Path(self.app_context.output_path)
        results = ResultsOperator(self, folder=folder, labels=self.labels, version=self.bundle_version, name="results")
        chosen = {("study_selected_series_list", "study_selected_series_list")}
        self.add_flow(load, select, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(select, volume, chosen)
        self.add_flow(volume, infer, {("image", "image")})
        self.add_flow(infer, results, {("pred", "pred")})
        self.add_flow(volume, results, {("image", "image")})
        self.add_flow(select, results, chosen)


def main() -> None:
    """Run the app on the folders named by -i, -o and -m; what it cannot label is refused before anything runs."""
    context = Application.init_app_context(sys.argv)
    try:
        series, model = find_series(Path(context.input_path)), find_model(Path(context.model_path))
        config = get_bundle_config(model, "inference")
        labels, version = config["labels"], config["_meta_"]["version"]
        describe(labels, version)
    except ValueError as error:
        sys.exit(str(error))
    context.update({"model": str(model)})
    TissueApp(context, series, model, labels, version).run()


if __name__ == "__main__":
    main()
