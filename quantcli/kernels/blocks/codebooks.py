"""The codebooks of the IQ families (vector quantization): the lattice points that a group of weights is rounded to.

IQ1 and IQ2 quantize eight weights at a time, IQ3 four, to one of 256 to 2048 points. These were chosen, once, for how often
the weights of real models are near them. A point's *code* is its levels packed in an integer, lowest dimension in
the lowest bits: two bits for each of eight dimensions (levels 0..2) or three for each of four (levels 0..7). Its *index* is
its position in the codebook, which is what a block stores.

Source: the tables in `iq2xs_init_impl` and `iq3xs_init_impl` (`ggml-quants.c`) and the values in `ggml-common.h`.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from secrets import token_hex
from types import MappingProxyType
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantcli.kernels.kernel_cache import cache_directory

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Lattice:
    """The compressed definition of a codebook.

    values   the value of each level, in units of the block's scale
    shells   how many of the smallest distinct distances the neighbour search of a point off the codebook covers
    steps    the ascending codes: differences of neighbours as little-endian uint16, deflated, in base 85
    """

    dimensions: int
    bits: int
    values: tuple[int, ...]
    shells: int
    steps: str


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """A decoded codebook: uint16 `codes` (points,), ascending, and int8 `values` (points, dimensions). Read-only."""

    codes: NDArray[np.uint16]
    values: NDArray[np.int8]


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The candidate lists of the nearest-neighbour search, for points that may be off the codebook. Read-only.

    starts       int32 (codes + 1,)
    candidates   uint16; those for code c are `candidates[starts[c] : starts[c + 1]]`
    index        int16 (codes,): the index of a code in the codebook, -1 if it is off the codebook

    Candidates are codes of codebook points, nearest first, ties by index. A code in the codebook has itself alone.
    """

    starts: NDArray[np.int32]
    candidates: NDArray[np.uint16]
    index: NDArray[np.int16]


_TERNARY: Final = Lattice(
    8, 2, (-1, 0, 1), 3,
    "c-oCujc(&M3>IZ6c4}XLuysxoU(*5|+U*W|o!*)NJz$6K)~(nx?9InN(UP6)h9ZqEQ55-+{Kz=xU4?(%)h@UezZdw~xQ^G(@JUu$+k0}LyA?jQZg"
    "3HwmiURNgVw!!Z|8Tj^Q61Mx9ECZp_>E#m$%<RP7Wy5q0|Z9@{ynSd?VnVNc6ZH@eJsC#X7{B-kqaP@hk2AiP8`F-KkWAt7QAY)<(Sfkgf3`3Oha"
    "1qK*M20B@6(2gRm4>U)E-8?$uWeTk6itoUw0mb5>pbYL8O=B;2qC>DUL361Es?vyoE?#&{)&@=RYf}gELYY%i|tB5vueuMV`$8^L|&JG;!VCdIs="
    "dYFt^O(q5o7o7NWY6~i%jQu9MyJZ+pDc=Qot>%GR<gXZ^8>EZ`x#1qg~*we@Qc}9-ZJ3=GsUYH0dv`#*P}g=v2FOB_DIub_YTqa?s^iPlw%RKy~I"
    "2x1eY=^rn@QAI<_QgtP*Nllw5Fx_k82DiX-n0v%MXhX_jt_sCr(J8_A+C_)OOIMJ|f$t;OGK<x`AWe(SV;TaLztGwsB^9IP-xJbC_uem`@}$lF`J"
    "x3d_D$E0~TIW>BGpkgnjmha3{vH2JFG%~Nr4dP|WuuAi#&f?!%K1&6OHQ;`;N*d6oirFi=8{ECX+WH>RI-h83HG{k&T${GWeR43XrO3QFzNai7vz"
    "}J24&<!Z{K#C}W>FI!PJ9SjIfBs@$_fLEU(e9-N{hKzD>}=fcD&|d;5=Dqeu&JPt*;A)@|saYhI`WZhOzM$c|!67;TUrsisnNs{G~J3`ki=wUoe$"
    "eK|V;VOH`AMzBoaMh|WA7k6M*t%k?B?WYdk-Gof+fJ_DEziCZZ6Q5YtVEEK5qcp}e7i96YmBMV1aw)Af9?ey+mV>I0v^X*aB{Dgg{x>v@~Q1mKab"
    "dW2}16d1PpJ`<WBl3jp5-UBgC-F$^kQ_}ce5jr}&bx0%eZ^JNWOsDPPyzWqaxVa735lghEUm7WW<S~aC63J7S@tFVT)9i?!x<BGj7g<^EU4YIw#K"
    "^~n-jkB|9j2^>5z^4QRkPx02Eunt<R>uX_wuqoHr~IPwcZUTVX9uIjG7q;=RT{*eoFkJaKPm`7Y3^&7<cTPr|_~e|n8+!0&*bNYpMgk`41tjeU2g"
    "NF)~OHD`Us3R15tzNOU~42+z2KdHv3Yy;f;Px;=?JzY*aO>6z4J31eF%du!&=b4MWMzlRTE8c7Wo9liBnKIvTZAffB&~$@nEcI0Kf7$~^uFGeXQ="
    "W}STV=ut%8!Bj>Jl;8&-!<7b1!v<{s0cC^W<}vw>rG#NFJM&N&e@#&e(CpfbEUeAt>uNMHedPyxKA&+KihRddpF+vVOKVzqS*sDxUbg`_6rW)R|~"
    "~jZY;HiGI<YI&#DPVmjkC%rNjjyU<D_n=|~vYWh(tfvR|sF;nX8<ky;KN#ITbP8ewq7n%c6ry9y2s)QSxtDXxi#@Ts&fKk%4*xPR|sjp|8g3b+9;"
    "qg1`h_CTjCJ?*L^GkSHto^7+COd9fj^6)Z=>>O;Z%vASL#MyL!t9sD;QpE9LOBt1#e60`;LV~D*y~_yNa){j{v`H9hJ=!7?*GI0Go8{0eoE|hkGr"
    "q#kd}EZ{R?w{Q3U",
)

LATTICES: Final[Mapping[str, Lattice]] = MappingProxyType({
    "IQ1_S": _TERNARY,
    "IQ1_M": _TERNARY,
    "IQ2_XXS": Lattice(
        8, 2, (8, 25, 43), 2,
        "c-l>o%_~G<6vlt=9q$<5%`|34k?SKV7I(u;lA4l4*+^L^!%A!<ikg~|KVnKTNhv9mg%S%=w)R%GQp&<c@!UIC>2}Y#=bYy}=Q-zsLqv~5t!$%wRB"
        "t-?j!`Gyt~f@9#UN)HV4Nf?%DNON89y5jaZ%yA0$h@XFz%yAd~vol!Belxg0Uf{Eu1+_kx}kR@NTPoox=47^VWjt9`#~67W<9yW2<VGGE*Fo;w@0"
        "&k*B1}K9`(ZU-bwbVsbc<y_Ww8aVbuP?P1Vtn+%&=nA_I>8^>tYyy_<FQj%A{mBtowsw5}}8Vb_Cqv!?WRCz5o%!{Lo2c}uKK3`0G7i5c!vCO+PI"
        "J(6bvz(c@^3&>n;@kTD{n}_wy^~aQqXr>2xO48({w`Um*wxMYdFI3X{R@{06U?xsy33JqOq2Pv{%zY?Qg)R`U96jKnv54Y<TX0O5PO=RadI_R`~s"
        "sbK5z",
    ),
    "IQ2_XS": Lattice(
        8, 2, (8, 25, 43), 2,
        "c-noE!An$O6vcnv8=k#nm>L<!j4_`kgAv8U!9{H(6H+7>fsG^TI4-n^Bnq5}S>(QT5JHG8T86tI2v@CI)SuwmUCVIc`M!BmGsBDw@6EmU-Fxo2=U"
        "(tg=;v|4y%YMcM+V#ci+XZRwy!UhwwyXjb5@eTAtiay5*=}GpPTejHRpHolrz#5Bh4_o&dPFC->0dWW;V7<E@m=LD6FFMBJL?tRU}|r(TaaQi==V"
        "}y0VDKDEcgB8wqvav}akxGQ!-AD~{w%^3_<+<F>pB-YBcW2}>0H)+ri&LZ`a50*2UQlr_y&awvmhc%-?~Jm87EcPyJg2wC+hNSz<be9aX$=ux!V-"
        "+khC?K;owi$R$>{{h?EwBE;mZJs;JPQT2i6uK+#&@@mkk>aCR7u*bcocf(ED2kP{SL5-W86g!-;|4-?3&keTgaIF<z#Yma!!4oDsWPvc`=;hM7^N"
        "8Fx^7|2<e6pLWclm3lv(wj@{MB_EUW%b7Z3@{;uZhxJFT9d)qh?7HQA+js|j%pxuH9o(cWJ1i1)_sZPL}}wY!{IQ+|p*N-?*rZlR{VPV+~KRE^J+"
        "Q{gvTs`<iYZ;?;@WS)KL)Z_Ns%MORic_@8tY?R0D1{e8d3cS>GHfohw;jQcgJzLWC49CYy3j",
    ),
    "IQ2_S": Lattice(
        8, 2, (8, 25, 43), 1,
        "c-oy+&ubGw6#k}V8Z!(H9=dj8Nc>SnDurM{s)z><Lhx3Qv{G30AQf%NMGB>t2>u7sTh9e=dh;OUPxH&nY%;UEv&OQ_%+A|4-@Ny|9}6sDna>g$W?"
        "trMC23*bbo(3LUPJO3R%mt#ryA6=nA+?$$3cLkh&<PQXpj|Fk%@Xcik5eR8=KxezNU<L*a>WUSFk9T-!}6|lzo(*7e1;)3yEP$&*Z%Tv4s(?^L-U"
        "7)VPlU4rP_+?Gm$oyi~2%@yPmqA8|<Ijdr$A*R80}|HouZ!*N<-xsOc@MHtgw>Eu}jR*ENhZx9mvkg-_Vc(iDZ;^W6iyL)tCpTfF{P@B6Qu3hYlV"
        "#Y1zSwf7l^D)Jx@OgfUTh5Yi_`(}sV1t+^YaxqyY}+-ppi3FijMPhA?DDMDCLaRk#Z~ick*rWIMxzQw`?!Y#VRJQhej|D|!6)}Nk#!YSUnf_~>6B"
        "iL#iFOHtRK%ZXd=qr75hh?Srgv&8F#TSZGQ;6(!Y61$&=;l6??IaSkfnQmz8>q?>G`u$!l!mkdk$gAzPax+s@J{bwcfRo@z$69Ct%gyN#LTXNk$)"
        "!aORR%px)gDsUGW*JsSJKX}Zu4_J|z^zGBpXwOj;F5OKZ@J7_<;U2$acu5{FL>}Fb^mah`b1{<nAMu*2iCw;()4mI?wkPeG*><EU;s7^U^(l75Z_"
        "&jme&G?mQX}D5!CTzHUl`O*2m",
    ),
    "IQ3_XXS": Lattice(
        4, 3, (4, 12, 20, 28, 36, 44, 52, 62), 2,
        "c-l>nT~C8R5JfK_-_RlyslnFP+N2s2qdxnlzBT^;f8&`cA%^TOJ9FmFos~kqn02LqJyot-zg?m!f03W1DrFO$dc>$gi58rRSC=}d(+a}q(BqvNeP"
        "|$Rnmu$gYhO;Q3$*r##a`!pss|K8YI4=om1rDvVsFu{bSAU=r(|Ap-MeNqDU3c@=C_N>n!U!4&Gy3Dqq62+z<#@%L3i_vJ#0L?C^<*(R+DM8#K|X"
        "n2a(`tq<c%|#9BcwU@Ll@xh?72KwWDKbtG$@dvcMhzteZXX#zDs*ld}ew3+74i2mZ($i^!+5L=WUsrf<es5d%W-d-TUNdsT#8DFt(@NE6|MD2}Qe"
        "d!PKX%Cq",
    ),
    "IQ3_S": Lattice(
        4, 3, (1, 3, 5, 7, 9, 11, 13, 15), 3,
        "c-mD{Yfr;440PH&+9q9Bw!y|g0u5<`?-T$3pK-o8(@>SfcKkSBToH$_myV~y*-`cqB|z%UqH==P-~Bwj)Z(cnnXw1NIa(a=dirR#mT87GK=-sH)`"
        "*OlnWvXbO|6mpA`|q&+hD#6q|6K(S)nE7Za#`+|A4b~ReR7F%|8-r?NOr=t0mq??33~04avmSSg80MBUeb-SejX-a&macxyY5>>HYc6Xn{?mhkq!"
        "$J1S=!ReiR%(iM%{x@(OiwTZbC@q1#fY<l$Dsz!8}v5&AP-km4~ShPmQKG1uTH*)ETJHzs7csfS3+2~m>GOA-HMY|=2dQ;!<L~erhHu6+71LsYrX"
        "ypsf%$<o~g0{o=VeDqP*qhY;6F#jJtajv-MB-L-fjk7ffbvx67wnZTIG>Qw0a+o^Pe>~wkDM@N>BL-$veqm1Z&aQ~;8G?hR-NSqr$en7XR*mCxGn"
        "O9wL{b|JK5lDGkXC3EpolfGtfl#ty~tOzQK3F>Vaer-?Mxp=0-H5Wzb5RA;Yu7o3(#V`8;tlHppH7>ZAO?_X9|;@&~>@55W",
    ),
})  # fmt: skip
"""The codebook of each block type."""


@cache
def codebook(name: str) -> Codebook:
    """The codebook of a block type.

    Raises:
        KeyError: for a type that has none.
    """
    lattice = LATTICES[name]
    steps = np.frombuffer(zlib.decompress(base64.b85decode(lattice.steps)), "<u2")
    codes = np.cumsum(steps, dtype=np.uint16)
    values = np.array(lattice.values, np.int8)[_levels(codes, lattice)]
    return Codebook(_frozen(codes), _frozen(values))


@cache
def neighbours(name: str) -> Neighbours:
    """The candidates for every code of a block type's lattice. They are cached on disk beside the compiled kernels;
    building them takes 10 to 200 ms.

    Raises:
        KeyError: for a type that has no codebook.
    """
    path = cache_directory() / f"neighbours-{name}.npz"
    try:
        # What is in the archive has a checksum; the folder's name has the digest of this file.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            tables: list[Any] = [_frozen(stored[field.name]) for field in fields(Neighbours)]
            return Neighbours(*tables)
    except Exception:  # an archive can be damaged in any way
        built = _build_neighbours(name)
    # A cache that cannot be written costs the time to build, no more.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.stem}.{token_hex(4)}.npz")
        np.savez(temporary, **{field.name: getattr(built, field.name) for field in fields(Neighbours)})
        temporary.replace(path)
    return built


def _build_neighbours(name: str) -> Neighbours:
    lattice = LATTICES[name]
    points = codebook(name).codes
    top = len(lattice.values) - 1
    size = sum(top << shift for shift in _shifts(lattice)) + 1
    codes = np.arange(size)
    codes = codes[(_levels(codes, lattice) <= top).all(axis=1)]
    distance = _squared_distances(_levels(codes, lattice), _levels(points, lattice))
    row, column = np.nonzero(distance <= _shell_distance(distance, lattice.shells)[:, None])
    order = np.lexsort((column, distance[row, column], row))
    starts = np.zeros(size + 1, np.int32)
    starts[codes + 1] = np.bincount(row)
    index = np.full(size, -1, np.int16)
    index[points] = np.arange(len(points))
    return Neighbours(_frozen(np.cumsum(starts, dtype=np.int32)), _frozen(points[column[order]]), _frozen(index))


def _shifts(lattice: Lattice) -> range:
    return range(0, lattice.bits * lattice.dimensions, lattice.bits)


def _levels(codes: NDArray[np.integer], lattice: Lattice) -> NDArray[np.integer]:
    """The levels (codes, dimensions) that the codes are made of."""
    return codes[:, None] >> np.array(_shifts(lattice), codes.dtype) & ((1 << lattice.bits) - 1)


def _squared_distances(a: NDArray[np.integer], b: NDArray[np.integer]) -> NDArray[np.int16]:
    """Squared distances between each row of `a` and each of `b`. They are small integers, so a float32 GEMM is exact: of
    (x, |x|^2, 1) and (-2 y, 1, |y|^2)."""
    x, y = a.astype(np.float32), b.astype(np.float32)
    left = np.column_stack([x, (x * x).sum(axis=1), np.ones(len(x), np.float32)])
    right = np.column_stack([-2 * y, np.ones(len(y), np.float32), (y * y).sum(axis=1)])
    squares: NDArray[np.float32] = left @ right.T
    return squares.astype(np.int16)


def _shell_distance(distance: NDArray[np.int16], shells: int) -> NDArray[np.int16]:
    """For each row the `shells`-th smallest distinct distance, or 0 where the smallest is 0."""
    smallest: NDArray[np.int16] = distance.min(axis=1)
    found = smallest
    for _ in range(shells - 1):
        found = np.where(distance > found[:, None], distance, np.iinfo(np.int16).max).min(axis=1)
    return np.where(smallest == 0, smallest, found)


def _frozen(array: NDArray[_Number]) -> NDArray[_Number]:
    array.flags.writeable = False
    return array
