"""FASTA header -> (accession, RNA type), by tables.

The types are INSDC's ncRNA classes and RNAcentral's names for them, plus the regulatory elements that Rfam adds.
`TYPES[i]` is the name of id i; `unknown` is 0. The list is part of a corpus's manifest, so it may only grow at its end.

Header styles understood (anything else is read as `accession free text`):

    URS00008314B2 rRNA from 13 species                     RNAcentral, active sequences
    URS000075BAAE_9606 Homo sapiens RNA, U5A small nuclear RNAcentral, species records; also free text as in NCBI's
    URS0000000001/10-90                                    RNAcentral, row name of an alignment
    rfam14.2_seed|X01556.1/3-118|RF00001:Gene;rRNA;        source|id|type, a family or nothing in the third field
    cel-let-7-5p MIMAT0000001 Caenorhabditis elegans ...   miRBase (MIMAT: mature, MI: hairpin)
    hsa_Homo_sapiens_tRNA-Ala-AGC-1-1                      GtRNAdb
    RF00001_AF095839_1_346-228 5S_rRNA                     name and class, the class being the only other word
    ENST00000516993.1 ncrna ... transcript_biotype:snRNA   Ensembl
"""

from __future__ import annotations

import re

TYPES: tuple[str, ...] = (
    "unknown",
    *("rRNA", "tRNA", "tmRNA", "miRNA", "pre_miRNA", "snoRNA", "scaRNA", "snRNA", "lncRNA", "sRNA", "piRNA", "siRNA"),
    *("ribozyme", "hammerhead_ribozyme", "autocatalytically_spliced_intron", "RNase_P_RNA", "RNase_MRP_RNA"),
    *("SRP_RNA", "Y_RNA", "vault_RNA", "telomerase_RNA", "guide_RNA", "antisense_RNA", "scRNA", "circRNA", "mRNA"),
    *("precursor_RNA", "misc_RNA", "ncRNA", "other"),
    *("riboswitch", "leader", "IRES", "thermoregulator", "frameshift_element", "CRISPR_RNA", "antitoxin_RNA"),
    *("cis_regulatory", "pseudogene"),
)
TYPE_ID = {name: i for i, name in enumerate(TYPES)}

# Other spellings of a type where a database gives the type as one word: Rfam, nrc, Ensembl biotypes. Lower case.
_SYNONYMS = {
    **{name.lower(): name for name in TYPES},
    **dict.fromkeys(("5s_rrna", "5_8s_rrna", "mt_rrna", "rrna_gene", "ribosomal_rna"), "rRNA"),
    **dict.fromkeys(("mt_trna", "transfer_rna"), "tRNA"),
    **dict.fromkeys(("cd-box", "haca-box", "c_d_box_snorna", "h_aca_box_snorna"), "snoRNA"),
    **dict.fromkeys(("splicing", "spliceosomal_rna"), "snRNA"),
    **dict.fromkeys(
        ("lincrna", "lnc_rna", "antisense_lncrna", "macro_lncrna", "bidirectional_promoter_lncrna"), "lncRNA"
    ),
    **dict.fromkeys(("intron_gpi", "intron_gpii", "intron"), "autocatalytically_spliced_intron"),
    **dict.fromkeys(("cis-reg", "cis_reg"), "cis_regulatory"),
    **dict.fromkeys(("protein_coding", "messenger_rna"), "mRNA"),
    **dict.fromkeys(("processed_pseudogene", "rrna_pseudogene", "trna_pseudogene"), "pseudogene"),
    "antisense": "antisense_RNA",
    "crispr": "CRISPR_RNA",
    "antitoxin": "antitoxin_RNA",
    "ires": "IRES",
    "mirna_hairpin": "pre_miRNA",
    "mature_mirna": "miRNA",
}
_BY_WORD = {word.encode(): TYPE_ID[name] for word, name in _SYNONYMS.items()}

# Phrases in free text, most specific first: the first one found decides. Text is lower case, punctuation is a blank.
_PHRASES: tuple[tuple[bytes, int], ...] = tuple(
    (phrase.encode(), TYPE_ID[name])
    for phrase, name in (
        ("ribosomal rna", "rRNA"),
        (" rrna", "rRNA"),
        ("transfer messenger", "tmRNA"),
        (" tmrna", "tmRNA"),
        (" ssra", "tmRNA"),
        ("transfer rna", "tRNA"),
        (" trna", "tRNA"),
        (" pre mir", "pre_miRNA"),
        ("stem loop", "pre_miRNA"),
        (" microrna", "miRNA"),
        (" mirna", "miRNA"),
        (" mir ", "miRNA"),
        (" let 7", "miRNA"),
        ("cajal body", "scaRNA"),
        (" scarna", "scaRNA"),
        ("small nucleolar", "snoRNA"),
        (" snorna", "snoRNA"),
        (" snord", "snoRNA"),
        (" snora", "snoRNA"),
        ("small nuclear", "snRNA"),
        ("spliceosomal", "snRNA"),
        (" snrna", "snRNA"),
        (" pirna", "piRNA"),
        (" pir ", "piRNA"),
        (" sirna", "siRNA"),
        ("hammerhead", "hammerhead_ribozyme"),
        ("group i intron", "autocatalytically_spliced_intron"),  # also finds group II
        ("rnase mrp", "RNase_MRP_RNA"),
        ("rnase p ", "RNase_P_RNA"),
        ("ribonuclease p ", "RNase_P_RNA"),
        ("signal recognition particle", "SRP_RNA"),
        (" srp ", "SRP_RNA"),
        ("7sl", "SRP_RNA"),
        ("telomerase", "telomerase_RNA"),
        (" vault ", "vault_RNA"),
        (" y rna", "Y_RNA"),
        ("guide rna", "guide_RNA"),
        ("riboswitch", "riboswitch"),
        ("ribozyme", "ribozyme"),
        ("internal ribosome entry", "IRES"),
        ("long non coding", "lncRNA"),
        ("long noncoding", "lncRNA"),
        ("long intergenic", "lncRNA"),
        (" lncrna", "lncRNA"),
        (" lincrna", "lncRNA"),
        ("non protein coding", "lncRNA"),
        ("antisense rna", "antisense_RNA"),
        ("circular rna", "circRNA"),
        (" circrna", "circRNA"),
        (" srna", "sRNA"),
        (" mrna", "mRNA"),
        (" misc rna", "misc_RNA"),
        (" ncrna", "ncRNA"),
    )
)
_FREE_TEXT = bytes(c if chr(c).isalnum() and c < 128 else 32 for c in range(256))
_BIOTYPE = re.compile(rb"transcript_biotype:(\S+)")
_MIRBASE = re.compile(rb"MI(MAT)?\d{7}\b")
_GTRNADB = re.compile(rb"(?:^|[_-])tRNA-(?:[A-Z][a-z]{2}|[a-z]?Met|SeC|Sup|Undet)")
_MIRNA_NAME = re.compile(rb"[a-z]{3,5}-(?:mi[Rr]|let|bantam|lin|lsy|iab)-")
_RFAM = re.compile(rb"(?:^|[|;\s])RF(\d{5})(?=$|[:;_/|\s])")
_MAX_ACCESSION = 255  # bytes; a longer first word is no accession and is cut

_CACHE_LIMIT = 1 << 16
_seen: dict[bytes, int] = {}


def classify(header: bytes) -> tuple[bytes, int]:
    """Header without ``>`` -> (accession, type id). Never fails: an unknown style gives its first word and 0.

    In ``source|id|type`` the accession is the id; a bare running number keeps its source in front, since alone it
    would name nothing.
    """
    words = header.split(None, 1)
    if not words:
        return b"", 0
    name = words[0]
    text = words[1] if len(words) == 2 else b""
    if b"|" in name and name.count(b"|") == 2:
        source, accession, _ = name.split(b"|")
        field = _field_type(header.split(b"|")[2]) or _name_type(accession)
        if not accession or accession.isdigit():
            accession = source + b"|" + accession
        return accession[:_MAX_ACCESSION], field
    if text:
        found = _seen.get(text)
        if found is None:
            found = _text_type(text)
            if len(_seen) >= _CACHE_LIMIT:
                _seen.clear()
            _seen[text] = found
    else:
        found = 0
    return name[:_MAX_ACCESSION], found or _name_type(name)


def rfam_family(header: bytes) -> int:
    """Number of the Rfam family that a header names (``RF00001`` is 1), or 0.

    Read where it stands for the record as a whole: at the start of a word, then nothing or one of `: ; _ / |`.
    """
    found = _RFAM.search(header)
    return int(found[1]) if found else 0


def _name_type(name: bytes) -> int:
    """What a name alone tells: GtRNAdb's ``tRNA-Ala-AGC-1-1`` and miRBase's ``cel-miR-34`` say it themselves."""
    if b"tRNA-" in name and _GTRNADB.search(name):
        return TYPE_ID["tRNA"]
    return TYPE_ID["miRNA"] if b"-" in name and _MIRNA_NAME.match(name) else 0


def _field_type(field: bytes) -> int:
    """``rRNA``, ``RF00001:Gene;snRNA;snoRNA;CD-box;`` (the last name known decides) or ``RF00174`` (unknown)."""
    names = field.strip().lower().rpartition(b":")[2].split(b";")
    return next((_BY_WORD[name] for name in reversed(names) if name in _BY_WORD), 0)


def _text_type(text: bytes) -> int:
    first, _, rest = text.partition(b" ")
    exact = _BY_WORD.get(first.lower())
    if exact is not None and (not rest.strip() or rest.startswith(b"from ")):
        return exact
    if mirbase := _MIRBASE.match(text):
        return TYPE_ID["miRNA" if mirbase[1] else "pre_miRNA"]
    if b"biotype:" in text and (biotype := _BIOTYPE.search(text)):
        return _BY_WORD.get(biotype[1].lower(), 0)
    plain = b" " + text.lower().translate(_FREE_TEXT) + b" "
    return next((found for phrase, found in _PHRASES if phrase in plain), 0)
