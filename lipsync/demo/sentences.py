"""What is said: words to draw sentences from for training, and whole sentences kept back for the measures."""

from __future__ import annotations

import numpy as np

WORDS = {
    "en": """hello people morning water mother father brother money paper window garden summer winter river coffee
    sugar butter apple banana potato tomato problem moment movie music beautiful wonderful important
    happy baby bubble simple maybe probably remember number member open close over under above below
    before after behind between black white blue green yellow purple orange brown silver golden cheese
    chair shoe show fish wash measure pleasure treasure vision judge large change bridge age jump just
    enjoy church watch catch teach reach see me we she he tea key free please week speak sleep street
    house mouse now how out about around cloud loud south go home road phone slow know boat coat snow
    boy toy voice choice noise point join buy my fly try night light right fire time five mile day way
    say make take late great rain train plane eight wait face place space car far star heart start hard
    calm palm law saw talk walk small ball fall call four door more store put book look good foot would
    could should moon soon food room school two who true new few you use cup bus run sun fun love come
    some but much such bed red head said bread friend when then men ten pen map cat hat bad man can hand
    stand plan thank bath bird word work world first girl turn learn nurse third thing think three
    through tooth this that there these those with within very never ever seven eleven have give move
    off laugh enough fifty wolf life leaf knife rabbit travel question answer language system computer
    network energy company possible family village hospital university difficult different oh ah ooh pop
    pipe bob bib mom map palm balm bump pump bomb oil owl awe arm aim""",
    "es": """hola amigo mañana buenos días gracias por favor tiempo mucho pueblo madre padre agua fuego cinco siete
    hombre mujer bueno problema música viaje palabra ventana casa mesa luna sol perro gato mundo siempre
    nunca""",
    "de": """guten morgen danke bitte wasser vater mutter bruder schwester fenster garten sommer winter abend möglich
    schön über fünf bleiben kaufen laufen haus baum auto problem buch sonne mond stimme wort""",
    "it": """buongiorno grazie prego acqua madre padre fratello amico mare sole bambino parola domani problema musica
    tempo bello piccolo vuoto fuoco chiesa pane mamma papà luna voce casa""",
    "fr": """bonjour merci maison fenêtre soleil lune jardin beaucoup toujours jamais voiture bateau musique parole
    petit grand bleu rouge amour monde nuit matin homme femme""",
}

_SOUNDS = tuple(
    sounds.split()
    for sounds in (
        """b bl br c ch cl d dr f fl fr g gl gr h j k l m n p pl pr qu r s sc sh sk sl sm sn sp st str sw t th tr tw v w
        y z""",
        "a e i o u ai ay ea ee ie igh oa oi oo ou ow oy ue aw ar er or ur",
        "- - - b ck d f ft g l lp lt m mp n nd ng nk nt p pt r rd rk rm rt s sh sk sp st t tch th v x z",
    )
)
"""What a made-up syllable begins with, has in its middle, and ends with; a dash stands for nothing."""

HELD_OUT = (
    "The old captain bought maps of every bay before he sailed.",
    "My aunt found four odd spoons under the warm oven.",
    "Please move the purple lamp away from the broken mirror.",
    "A small brown fox jumped over the pool and vanished.",
    "Who would choose to wear blue shoes in a muddy farm yard?",
    "Bob promised to pay five pounds for the famous painting.",
    "We heard a lovely song about the moon and the open sea.",
    "Father washed the car while mother baked some apple pie.",
    "The judge should measure the value of a good first idea.",
    "Papa bought a bumpy old boat, but mama wanted a house.",
    "Thank you for the beautiful view from your upper room.",
    "Every morning, half of the village walks along the river.",
)
"""Sentences of ours that no training utterance holds."""
TUNING = (
    "Seven wet otters hid below the wooden bridge at noon.",
    "Could you pour more soup into my favourite blue bowl?",
    "Bread and jam make a fine meal for a hungry farmer.",
    "Nobody saw what happened to the yellow umbrella.",
    "They built a huge wall of stone around the royal park.",
    "Pam moved her books up to the top shelf by herself.",
    "It was hot, so everybody wore thin shirts and straw hats.",
    "Show me how far the rope will reach across the yard.",
)
"""Others, on which the export decides how far to widen what is heard."""


def draw_sentence(rng: np.random.Generator, language: str) -> str:
    """Five to twelve random words, a third of them made up, with some punctuation."""
    pool = WORDS[language].split()
    words = [
        _make_up(rng) if rng.random() < 0.35 else pool[rng.integers(len(pool))] for _ in range(rng.integers(5, 13))
    ]
    if rng.random() < 0.6:
        words[rng.integers(1, len(words) - 1)] += ","
    return " ".join(words) + ("." if rng.random() < 0.8 else "?")


def _make_up(rng: np.random.Generator) -> str:
    """A word of one to three syllables that no language has: sounds in company that the lists do not show."""
    syllables = ("".join(part[rng.integers(len(part))] for part in _SOUNDS) for _ in range(rng.integers(1, 4)))
    return "".join(syllables).replace("-", "")
