"""The licences that let text in, and how their names are really spelt: data for licences.py.

A licence that is on no list here is refused. Families hold SPDX identifiers (https://spdx.org/licenses/);
`LicenseRef-` names stand for what SPDX does not list, those with `scancode` as license-expression's index has them.
"""

PUBLIC_DOMAIN = "LicenseRef-scancode-public-domain"
US_GOVERNMENT = "LicenseRef-scancode-us-govt-public-domain"
# Own names for open licences that SPDX lacks. IODL: https://dati.gov.it/iodl/2.0/. KOGL type 1: attribution only.
# GeoNutzV: the German ordinance on the use of federal geodata of 2013-03-19, any use with attribution.
OWN = """
LicenseRef-Licence-Ouverte-1.0 LicenseRef-IODL-1.0 LicenseRef-IODL-2.0 LicenseRef-KOGL-Type-1 LicenseRef-GeoNutzV
""".split()

# No condition at all.
OPEN = f"""
CC0-1.0 CC-PDM-1.0 CC-PDDC PDDL-1.0 Unlicense 0BSD MIT-0 WTFPL DL-DE-ZERO-2.0 NIST-PD NCBI-PD blessing {PUBLIC_DOMAIN}
{US_GOVERNMENT}
""".split()

# Credit, notices or a change note, and nothing on the licence of what is made from it.
ATTRIBUTION = """
CC-BY-1.0 CC-BY-2.0 CC-BY-2.5 CC-BY-2.5-AU CC-BY-3.0 CC-BY-3.0-AT CC-BY-3.0-AU CC-BY-3.0-DE CC-BY-3.0-IGO CC-BY-3.0-NL
CC-BY-3.0-US CC-BY-4.0 etalab-2.0 OGL-UK-1.0 OGL-UK-2.0 OGL-UK-3.0 OGL-Canada-2.0 DL-DE-BY-2.0 NLOD-1.0 NLOD-2.0
ODC-By-1.0 CDLA-Permissive-1.0 CDLA-Permissive-2.0 O-UDA-1.0 LicenseRef-Licence-Ouverte-1.0 LicenseRef-IODL-2.0
LicenseRef-KOGL-Type-1 LicenseRef-GeoNutzV OGDL-Taiwan-1.0 MIT MIT-CMU MIT-Modern-Variant X11 ISC BSD-1-Clause
BSD-2-Clause BSD-2-Clause-Patent BSD-2-Clause-Views BSD-3-Clause BSD-3-Clause-Clear BSD-3-Clause-LBNL
BSD-3-Clause-Attribution BSD-4-Clause BSD-4-Clause-UC BSD-Source-Code Apache-1.0 Apache-1.1 Apache-2.0 Zlib
zlib-acknowledgement Libpng libpng-2.0 PSF-2.0 Python-2.0 CNRI-Python PostgreSQL NCSA BSL-1.0 AFL-2.1 AFL-3.0 ECL-1.0
ECL-2.0 Unicode-DFS-2015 Unicode-DFS-2016 Unicode-3.0 ICU W3C W3C-20150513 UPL-1.0 BlueOak-1.0.0 CECILL-B curl HPND
NTP FTL IJG TCL OpenSSL PHP-3.01 MulanPSL-2.0 ZPL-2.1 bzip2-1.0.6 FSFAP EFL-2.0 Beerware OLDAP-2.8 Latex2e SMLNJ
VSL-1.0 Xnet
""".split()

# What is made from it keeps the licence, wholly or file by file. GFDL: only without invariant sections, which forbid
# changes; a GFDL label that does not speak of them is taken to have none, as Wikipedia's and Debian's have none.
SHARE_ALIKE = """
CC-BY-SA-1.0 CC-BY-SA-2.0 CC-BY-SA-2.0-UK CC-BY-SA-2.1-JP CC-BY-SA-2.5 CC-BY-SA-3.0 CC-BY-SA-3.0-AT CC-BY-SA-3.0-DE
CC-BY-SA-3.0-IGO CC-BY-SA-4.0 CC-SA-1.0 ODbL-1.0 CDLA-Sharing-1.0 LicenseRef-IODL-1.0 GFDL-1.1-only GFDL-1.1-or-later
GFDL-1.1-no-invariants-only GFDL-1.1-no-invariants-or-later GFDL-1.2-only GFDL-1.2-or-later
GFDL-1.2-no-invariants-only GFDL-1.2-no-invariants-or-later GFDL-1.3-only GFDL-1.3-or-later
GFDL-1.3-no-invariants-only GFDL-1.3-no-invariants-or-later LAL-1.2 LAL-1.3 GPL-1.0-only GPL-1.0-or-later GPL-2.0-only
GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later LGPL-2.0-only LGPL-2.0-or-later LGPL-2.1-only LGPL-2.1-or-later
LGPL-3.0-only LGPL-3.0-or-later AGPL-1.0-only AGPL-1.0-or-later AGPL-3.0-only AGPL-3.0-or-later LGPLLR MPL-1.0 MPL-1.1
MPL-2.0 MPL-2.0-no-copyleft-exception EPL-1.0 EPL-2.0 CPL-1.0 IPL-1.0 CDDL-1.0 CDDL-1.1 EUPL-1.0 EUPL-1.1 EUPL-1.2
OSL-2.1 OSL-3.0 CECILL-1.0 CECILL-1.1 CECILL-2.0 CECILL-2.1 CECILL-C Artistic-1.0 Artistic-1.0-Perl Artistic-1.0-cl8
Artistic-2.0 ClArtistic Ruby LPPL-1.0 LPPL-1.1 LPPL-1.2 LPPL-1.3a LPPL-1.3c MS-PL MS-RL OFL-1.0 OFL-1.1
Linux-man-pages-copyleft Vim APSL-2.0 QPL-1.0 Sleepycat D-FSL-1.0 copyleft-next-0.3.1 LiLiQ-P-1.1 LiLiQ-R-1.1
""".split()

# Names that are neither an SPDX identifier nor a form of Creative Commons or GNU, which licences.py reads by grammar.
# Compared without case, accents, spaces and signs and without words like "licence" and "version"; cc is Creative
# Commons, odc is Open Data Commons; what follows a name in brackets is read by itself.
SPELLINGS = {
    PUBLIC_DOMAIN: """
        public domain | pd | public domain work | work in the public domain | in the public domain | other pd
        other (public domain) | domaine public | dominio publico | dominio pubblico | publiek domein | gemeinfrei
        gemeinfreiheit | pd old | pd old 70 | pd old 80 | pd old 90 | pd old 100 | pd old 70 expired
        pd old 80 expired | pd old 100 expired | amtliches werk | official works | official work
        pd gov | pd germangov""",
    US_GOVERNMENT: """
        us government work | us government works | works of the us government | us gov | us govt public domain
        us federal government work | us federal public domain | united states government work | us pd gov
        work of the united states government | pd usgov | us government public domain | usa.gov/government-works
        usa.gov/publicdomain/label/1.0""",
    "CC-PDM-1.0": """
        public domain mark | public domain mark 1.0 | pdm | pdm 1.0 | cc pdm | cc public domain mark
        cc public domain mark 1.0 | marque du domaine public | marque du domaine public 1.0
        marca de dominio publico""",
    "CC0-1.0": """
        cc 0 | cc zero | cc zero 1.0 | cc cc0 | cc cc0 1.0 | cc cczero | cc0 universal | cc0 1.0 universal
        cc zero 1.0 universal | cc cc0 1.0 universal | cc0 public domain | cc0 public domain dedication
        cc0 1.0 public domain dedication | cc0 1.0 universal public domain dedication
        cc cc0 1.0 universal public domain dedication | cc0 1.0 universal (cc0 1.0) public domain dedication""",
    "CC-PDDC": "public domain dedication | cc public domain dedication | cc public domain",
    "PDDL-1.0": """
        pddl | odc pddl | odc pddl 1.0 | odc public domain dedication and license
        public domain dedication and license
        opendatacommons.org/licenses/pddl | opendatacommons.org/licenses/pddl/1-0""",
    "ODC-By-1.0": """
        odc by | odc attribution | odc attribution 1.0 | odby | opendatacommons.org/licenses/by
        opendatacommons.org/licenses/by/1-0""",
    "ODbL-1.0": """
        odbl | odc odbl | odc odbl 1.0 | open database | open database 1.0 | odc open database | odc open database 1.0
        opendatacommons.org/licenses/odbl | opendatacommons.org/licenses/odbl/1-0""",
    "etalab-2.0": """
        etalab | etalab 2 | licence ouverte | licence ouverte 2.0 | licence ouverte etalab | licence ouverte etalab 2.0
        licence ouverte/open licence | licence ouverte/open licence 2.0 | licence ouverte/open licence etalab | lov2
        licence ouverte 2.0/open licence 2.0 | open licence 2.0/licence ouverte 2.0 | open licence etalab
        etalab open license 2.0 | lo 2.0 | lo ol 2.0 | etalab.gouv.fr/licence-ouverte-open-licence
        etalab.gouv.fr/wp-content/uploads/2017/04/etalab-licence-ouverte-v2.0.pdf
        github.com/etalab/licence-ouverte/blob/master/lo.md""",
    "LicenseRef-Licence-Ouverte-1.0": "licence ouverte 1.0 | licence ouverte/open licence 1.0 | fr lo | lov1 | lo 1.0",
    "OGL-UK-3.0": """
        ogl | ogl uk | uk ogl | ogl 3 | ogl 3.0 | ogl uk 3 | open government licence | open government licence 3.0
        uk open government licence | uk open government licence 3.0 | open government licence uk
        nationalarchives.gov.uk/doc/open-government-licence
        nationalarchives.gov.uk/doc/open-government-licence/version/3
        reference.data.gov.uk/id/open-government-licence""",
    "OGL-UK-2.0": """
        ogl 2 | ogl 2.0 | open government licence 2.0
        nationalarchives.gov.uk/doc/open-government-licence/version/2""",
    "OGL-UK-1.0": """
        ogl 1 | ogl 1.0 | open government licence 1.0
        nationalarchives.gov.uk/doc/open-government-licence/version/1""",
    "OGL-Canada-2.0": """
        open government licence canada | open government licence canada 2.0 | ogl canada | ca ogl lgo
        open.canada.ca/en/open-government-licence-canada""",
    "DL-DE-BY-2.0": """
        dl de by | dl by de | dl by de 2.0 | datenlizenz deutschland namensnennung
        data licence germany attribution 2.0 | datenlizenz deutschland namensnennung 2.0 | govdata.de/dl-de/by-2-0""",
    "DL-DE-ZERO-2.0": """
        dl de zero | dl zero de | dl zero de 2.0 | datenlizenz deutschland zero | datenlizenz deutschland zero 2.0
        data licence germany zero 2.0 | govdata.de/dl-de/zero-2-0""",
    "LicenseRef-GeoNutzV": "geonutzv | geonutz | geonutz/20130319",
    "NLOD-2.0": """
        nlod | norsk lisens for offentlige data | norsk lisens for offentlige data 2.0 | data.norge.no/nlod/no
        norwegian licence for open government data | norwegian licence for open government data 2.0
        data.norge.no/nlod/no/2.0 | data.norge.no/nlod/en/2.0""",
    "NLOD-1.0": "norsk lisens for offentlige data 1.0 | data.norge.no/nlod/no/1.0 | data.norge.no/nlod/en/1.0",
    "LicenseRef-IODL-2.0": """
        iodl | iodl 2.0 | italian open data license | italian open data license 2.0 | dati.gov.it/iodl/2.0""",
    "LicenseRef-IODL-1.0": "iodl 1.0 | italian open data license 1.0 | formez.it/iodl",
    "LicenseRef-KOGL-Type-1": "kogl type 1 | korea open government license type 1",
    "CDLA-Permissive-2.0": "community data license agreement permissive 2.0",
    "CDLA-Permissive-1.0": "community data license agreement permissive 1.0",
    "CDLA-Sharing-1.0": "community data license agreement sharing 1.0",
    "O-UDA-1.0": "open use of data agreement 1.0",
    "LAL-1.3": "fal | fal 1.3 | free art | free art 1.3 | art libre | art libre 1.3 | artlibre.org/licence/lal",
    "MIT": """
        mit/x11 | x11/mit | expat | expat/mit | mit/expat | mit + file license | mit style
        opensource.org/licenses/mit-license.php""",
    "ISC": "iscl",
    "BSD-3-Clause": """
        bsd | bsd 3 | new bsd | modified bsd | revised bsd | bsd new | 3 clause bsd | three clause bsd | bsd style
        bsd 3 clause "new" or "revised" | bsd_3_clause + file license | new and simplified bsd | bsd license family""",
    "BSD-2-Clause": """
        bsd 2 | simplified bsd | freebsd | 2 clause bsd | bsd 2 clause "simplified" | bsd_2_clause + file license""",
    "BSD-4-Clause": "bsd original | original bsd",
    "Apache-2.0": """
        apache | apache 2 | al2 | asl 2 | asl 2.0 | apache software | apache software 2.0 | apache public 2.0
        apache.org/licenses/license-2.0 |
        apache.org/licenses/license-2.0.html | apache.org/licenses/license-2.0.txt""",
    "BSL-1.0": "boost | boost 1.0 | boost software | boost software 1.0",
    "Zlib": "zlib/libpng",
    "NCSA": "university of illinois/ncsa open source",
    "PSF-2.0": "psf | psfl | python software foundation",
    "AFL-3.0": "afl | academic free | academic free 3.0",
    "ECL-2.0": "ecl | educational community | educational community 2.0",
    "W3C": "w3c software notice and license",
    "UPL-1.0": "upl | universal permissive | universal permissive 1.0",
    "WTFPL": "do what the f*ck you want to public | do what the fuck you want to public | wtfpl 2",
    "Unlicense": "unlicense.org",
    "MPL-2.0": "mpl | mpl 2 | mozilla | mozilla public | mozilla public 2.0 | mozilla.org/mpl/2.0",
    "MPL-1.1": "mozilla public 1.1 | mozilla.org/mpl/1.1",
    "EPL-1.0": "eclipse public 1.0",
    "EPL-2.0": "epl | eclipse | eclipse public | eclipse public 2.0",
    "CDDL-1.0": "cddl | common development and distribution | common development and distribution 1.0",
    "EUPL-1.2": "eupl | european union public | european union public 1.2",
    "EUPL-1.1": "european union public 1.1",
    "OSL-3.0": "osl | open software 3.0",
    "CECILL-2.1": "cecill | cecill free software license agreement 2.1",
    "Artistic-2.0": "artistic | artistic 2",
    "Artistic-1.0-Perl": "perl | same as perl",
    "LPPL-1.3c": "lppl | latex project public | latex project public 1.3c",
    "OFL-1.1": "ofl | sil ofl | sil ofl 1.1 | sil open font | sil open font 1.1",
    "MS-PL": "microsoft public",
    "MS-RL": "microsoft reciprocal",
    "LGPLLR": "lgpl lr | lesser general public license for linguistic resources",
}

# What a note in brackets may say: grounds of the public domain that statutes give. Anything else in brackets that is
# not itself a licence leaves the label unknown.
GROUNDS = {
    "official works",
    "official acts",
    "official texts",
    "official documents",
    "public domain par5 urhg",
    "par5 urhg",  # Germany: no copyright in official works
    "art. 11 auteurswet",  # Netherlands: none in laws, decrees and judgments
    "art. 5 l. 633/1941",  # Italy: none in official acts
    "lei 9.610/98 art. 8",  # Brazil: none in laws, decisions and other official acts
    "d.leg. 822 art. 9",  # Peru: none in official texts
    "17 u.s.c. par105",  # United States: none in works of the federal government
}

# Parts of a label that speak of something other than the text ("markup CC-BY-4.0"): their licence adds to the text's.
SCOPES = "markup structure encoding annotation annotations".split()

# Crawled from Common Crawl, whatever the label says. Names are matched as words in the collection, title of the data
# set or identifier. Checked against the data sets' own cards and papers.
COMMON_CRAWL = {
    "Common Crawl": r"common[-_ ]?crawl|cc-main|cccc|cc-?100|cc-?news|cc-?stories|cc-?net|ccaligned|ccmatrix",
    "C4": r"(?:m|g|mm)c4|c4[-_ ]?en|(?:allenai|legacy-datasets)/c4|colossal clean(?:ed)? crawled corpus|c4-train",
    "OSCAR": r"oscar-corpus|oscar[-_ ]?\d{2,4}|(?:colossal|community)[-_ ]oscar|oscar corpus|unshuffled_original",
    "RefinedWeb": r"refined[-_ ]?web",
    "FineWeb": r"(?:ultra-)?fineweb(?:[-_ ]?edu)?[-_ ]?\d?(?:-hq)?|huggingfacefw|finepdfs|finemath",
    "RedPajama": r"(?:red|slim)pajama",
    "CulturaX": r"culturax",
    "HPLT": r"hplt",
    "MADLAD-400": r"madlad",
    "The Pile": r"pile[-_ ]?cc|the[-_ ]pile",
    "DCLM": r"dclm|datacomp-lm",
    "Dolma": r"allenai/dolma|dolma[-_ ]?(?:cc|v?\d)",
    "Nemotron-CC": r"nemotron-cc",
    "OpenWebMath": r"open[-_]?web[-_]?math|proof-pile(?:-2)?",
    "TxT360": r"txt360",
    "Zyda": r"zyda",
    "GlotCC": r"glotcc",
    "LAION": r"laion",
    "OBELICS": r"obelics",
    "Essential-Web": r"essential-web",
    "MassiveText": r"massive(?:text|web)",
}
# Also ordinary words: they must be the whole name of the collection, with at most a version or a language after them.
COMMON_CRAWL_WHOLE = {"C4": r"c4", "OSCAR": r"oscar", "Dolma": r"dolma"}
